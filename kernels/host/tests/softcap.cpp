#include "../../softcap.cu"

#include "check.hpp"

void run(size_t n, size_t off, float cap, bool in_place, unsigned seed) {
    Random random(n + off);
    auto x = random_floats<float>(random, n + off, 40.0f);
    if (n > 4) x[off + 3] = -1e30f;
    Buffer<float> out(n + off + 1);
    if (in_place) {
        for (size_t i = 0; i < n + off; i++) out[i] = x[i];
    }
    SoftcapArgs args{in_place ? out.get() + off : x.get() + off, out.get() + off, n, cap};
    softcap(Dim3{unsigned((n + 1023) / 1024)}, Dim3{256}, 0, &args, seed);
    for (size_t i = 0; i < n; i++) {
        const double want = cap * std::tanh(double(x[i + off]) / cap);
        check("softcap", i, out[i + off], want, 1e-6 * std::fabs(want) + 1e-12);
    }
    if (!std::isnan(out[n + off])) fail("softcap writes outside its output");
}

int main() {
    for_orders([](unsigned seed) {
        for (size_t n : {1, 3, 4, 1024, 3001}) {
            for (size_t off : {0, 1}) {
                run(n, off, 30.0f, false, seed);
                run(n, off, 0.5f, true, seed);
            }
        }
    });
    Buffer<float> x(1, NAN), out(1);
    SoftcapArgs args{x.get(), out.get(), 1, 30.0f};
    softcap(Dim3{1}, Dim3{256}, 0, &args, 0);
    if (!std::isnan(out[0])) fail("softcap of what is no number");
}
