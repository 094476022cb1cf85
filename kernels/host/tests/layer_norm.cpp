#include "../../layer_norm.cu"

#include "check.hpp"

// Rows around `offset`: far from zero the variance must not be lost in the squares.
template <class Out>
void run(int rows, int cols, float offset, unsigned seed) {
    Random random(uint64_t(rows * 1000 + cols));
    auto x = random_floats<float>(random, size_t(rows) * cols, 3.0f);
    auto weight = random_floats<float>(random, cols), bias = random_floats<float>(random, cols);
    for (size_t i = 0; i < x.size(); i++) x[i] += offset;
    Buffer<Out> out(size_t(rows) * cols);
    LayerNormArgs args{x.get(), weight.get(), bias.get(), out.get(), cols, element_type<Out>(), 1e-5f};
    layer_norm(Dim3{unsigned(rows)}, Dim3{256}, 0, &args, seed);
    for (int r = 0; r < rows; r++) {
        double mean = 0.0, variance = 0.0;
        for (int i = 0; i < cols; i++) mean += double(x[r * cols + i]) / cols;
        for (int i = 0; i < cols; i++) variance += std::pow(x[r * cols + i] - mean, 2) / cols;
        const double factor = 1.0 / std::sqrt(variance + 1e-5f);
        for (int i = 0; i < cols; i++) {
            const size_t at = size_t(r) * cols + i;
            const double normed = (x[at] - mean) * factor * weight[i], want = normed + bias[i];
            // What f32 cannot tell of a difference from the mean.
            const double lost = 4e-7 * std::fabs(offset) * factor * std::fabs(weight[i]);
            check("layer_norm", at, to_f32(out[at]), want, rounding<Out>(want) + 2e-6 * (std::fabs(normed) + std::fabs(bias[i])) + lost);
        }
    }
}

int main() {
    for_orders([](unsigned seed) {
        for (int cols : {1, 64, 255, 256, 576, 4097}) {
            for (float offset : {0.0f, 100.0f}) {
                run<float>(3, cols, offset, seed);
                run<bf16>(1, cols, offset, seed);
                run<f16>(3, cols, offset, seed);
            }
        }
    });
}
