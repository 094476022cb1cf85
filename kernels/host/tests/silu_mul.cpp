#include "../../silu_mul.cu"

#include "check.hpp"

// `off` elements from where the buffers begin.
template <class Out>
void run(size_t n, size_t off, unsigned seed) {
    Random random(n + off);
    auto gate = random_floats<float>(random, n + off, 12.0f), up = random_floats<float>(random, n + off, 3.0f);
    if (n > 4) gate[off + 3] = -200.0f;
    Buffer<Out> out(n + off + 1);
    SiluMulArgs args{gate.get() + off, up.get() + off, out.get() + off, n, element_type<Out>(), 0};
    silu_mul(Dim3{unsigned((n + 2047) / 2048)}, Dim3{256}, 0, &args, seed);
    for (size_t i = 0; i < n; i++) {
        double g = gate[i + off], want = g / (1.0 + std::exp(-g)) * up[i + off];
        check("silu_mul", i, to_f32(out[i + off]), want, rounding<Out>(want) + 5e-7 * std::fabs(want));
    }
    if (!std::isnan(to_f32(out[n + off])) || (off > 0 && !std::isnan(to_f32(out[0])))) fail("silu_mul writes outside its output");
}

void special() {
    const float gates[] = {NAN, INFINITY, -INFINITY, -100.0f, 100.0f, 0.0f};
    Buffer<float> gate(6), up(6, 2.0f), out(6);
    for (size_t i = 0; i < 6; i++) gate[i] = gates[i];
    SiluMulArgs args{gate.get(), up.get(), out.get(), 6, F32, 0};
    silu_mul(Dim3{1}, Dim3{256}, 0, &args, 0);
    if (!std::isnan(out[0]) || out[1] != INFINITY || !std::isnan(out[2])) fail("silu_mul of what is no number");
    check("silu_mul far below", 3, out[3], 0.0, 1e-38);
    check("silu_mul far above", 4, out[4], 200.0, 0.0);
    check("silu_mul of 0", 5, out[5], 0.0, 0.0);
}

int main() {
    for_orders([](unsigned seed) {
        for (size_t n : {1, 3, 4, 7, 8, 9, 2048, 2049, 5000}) {
            for (size_t off : {0, 1, 4}) {
                run<float>(n, off, seed);
                run<bf16>(n, off, seed);
                run<f16>(n, off, seed);
            }
        }
    });
    special();
}
