#include "../../gelu.cu"

#include "check.hpp"

double gelu_of(double x, bool by_tanh) {
    if (by_tanh) return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
}

// `off` elements from where the buffers begin.
template <class Out>
void run(size_t n, size_t off, bool by_tanh, bool gated, unsigned seed) {
    Random random(n + off);
    auto x = random_floats<float>(random, n + off, 6.0f), up = random_floats<float>(random, n + off, 3.0f);
    if (n > 4) x[off + 3] = -200.0f;
    Buffer<Out> out(n + off + 1);
    GeluArgs args{x.get() + off, gated ? up.get() + off : nullptr, out.get() + off, n, element_type<Out>(), by_tanh};
    gelu(Dim3{unsigned((n + 1023) / 1024)}, Dim3{256}, 0, &args, seed);
    for (size_t i = 0; i < n; i++) {
        const double u = gated ? up[i + off] : 1.0, want = gelu_of(x[i + off], by_tanh) * u;
        // Below zero the tangent's form is a difference.
        const double bound = rounding<Out>(want) + 2e-6 * std::fabs(want) + 2e-7 * std::fabs(x[i + off] * u);
        check("gelu", i, to_f32(out[i + off]), want, bound);
    }
    if (!std::isnan(to_f32(out[n + off])) || (off > 0 && !std::isnan(to_f32(out[0])))) fail("gelu writes outside its output");
}

void special() {
    const float xs[] = {NAN, -1e30f, 1e30f, 0.0f};
    for (int by_tanh : {0, 1}) {
        Buffer<float> x(4), out(4);
        for (size_t i = 0; i < 4; i++) x[i] = xs[i];
        GeluArgs args{x.get(), nullptr, out.get(), 4, F32, by_tanh};
        gelu(Dim3{1}, Dim3{256}, 0, &args, 0);
        if (!std::isnan(out[0])) fail("gelu of what is no number");
        check("gelu far below", 1, out[1], 0.0, 1e-20);
        check("gelu far above", 2, out[2], 1e30f, 1e24);
        check("gelu of 0", 3, out[3], 0.0, 0.0);
    }
}

int main() {
    for_orders([](unsigned seed) {
        for (size_t n : {1, 3, 4, 7, 1024, 1025, 3000}) {
            for (size_t off : {0, 1}) {
                for (bool by_tanh : {false, true}) {
                    for (bool gated : {false, true}) {
                        run<float>(n, off, by_tanh, gated, seed);
                        run<bf16>(n, off, by_tanh, gated, seed);
                    }
                    run<f16>(n, off, by_tanh, true, seed);
                }
            }
        }
    });
    special();
}
