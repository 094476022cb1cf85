#include "../../rms_norm.cu"

#include "check.hpp"

template <class Out>
void run(int rows, int cols, bool with_residual, unsigned seed) {
    Random random(uint64_t(rows * 1000 + cols));
    auto x = random_floats<float>(random, size_t(rows) * cols, 3.0f);
    auto weight = random_floats<float>(random, cols);
    auto residual = random_floats<float>(random, size_t(rows) * cols);
    Buffer<Out> out(size_t(rows) * cols);
    RmsNormArgs args{x.get(), weight.get(), with_residual ? residual.get() : nullptr, out.get(), cols, element_type<Out>(), 1e-5f};
    rms_norm(Dim3{unsigned(rows)}, Dim3{256}, 0, &args, seed);
    for (int r = 0; r < rows; r++) {
        double sum = 0.0;
        for (int i = 0; i < cols; i++) sum += double(x[r * cols + i]) * x[r * cols + i];
        double factor = 1.0 / sqrt(sum / cols + 1e-5f);
        for (int i = 0; i < cols; i++) {
            size_t at = size_t(r) * cols + i;
            double normed = x[at] * factor * weight[i], added = with_residual ? residual[at] : 0.0, want = normed + added;
            check("rms_norm", at, to_f32(out[at]), want, rounding<Out>(want) + 1e-6 * (fabs(normed) + fabs(added)));
        }
    }
}

int main() {
    for_orders([](unsigned seed) {
        for (int cols : {1, 64, 255, 256, 576, 4097}) {
            for (int rows : {1, 3}) {
                for (bool with_residual : {false, true}) {
                    run<float>(rows, cols, with_residual, seed);
                    run<bf16>(rows, cols, with_residual, seed);
                    run<f16>(rows, cols, with_residual, seed);
                }
            }
        }
    });
}
