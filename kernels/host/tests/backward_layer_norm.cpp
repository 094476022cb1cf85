#include "../../backward/layer_norm_backward.cu"

#include "check.hpp"

const float EPS = 1e-5f;

// What is differentiated: Σ d_out w (x - mean) / sqrt(variance + eps).
double loss(const std::vector<double>& x, const float* weight, const float* d_out) {
    double mean = 0.0, variance = 0.0, sum = 0.0;
    for (double v : x) mean += v / double(x.size());
    for (double v : x) variance += (v - mean) * (v - mean) / double(x.size());
    for (size_t i = 0; i < x.size(); i++) sum += d_out[i] * weight[i] * (x[i] - mean);
    return sum / std::sqrt(variance + EPS);
}

void run(int rows, int cols, unsigned seed) {
    Random random(uint64_t(rows * 1000 + cols));
    const size_t n = size_t(rows) * cols;
    auto x = random_floats<float>(random, n, 3.0f), d_out = random_floats<float>(random, n);
    auto weight = random_floats<float>(random, cols), before = random_floats<float>(random, n);
    for (size_t i = 0; i < n; i++) x[i] += 5.0f;
    Buffer<float> d_x(n);
    for (size_t i = 0; i < n; i++) d_x[i] = before[i];
    LayerNormBackwardArgs args{x.get(), weight.get(), d_out.get(), d_x.get(), cols, EPS};
    layer_norm_backward(Dim3{unsigned(rows)}, Dim3{256}, 0, &args, seed);
    for (int r = 0; r < rows; r++) {
        const float *row = args.x + r * cols, *d = args.d_out + r * cols;
        Sum mean, squares, gradients, products;
        for (int i = 0; i < cols; i++) mean.add(double(row[i]) / cols);
        for (int i = 0; i < cols; i++) {
            const double centred = row[i] - mean.value, g = double(args.weight[i]) * d[i];
            squares.add(centred * centred / cols);
            gradients.add(g / cols);
            products.add(g * centred / cols);
        }
        const double factor = 1.0 / std::sqrt(squares.value + EPS);
        for (int i = 0; i < cols; i++) {
            const size_t at = size_t(r) * cols + i;
            const double y = (row[i] - mean.value) * factor;
            Sum want;
            want.add(before[at]);
            want.add(factor * args.weight[i] * d[i]);
            want.add(-factor * gradients.value);
            want.add(-factor * y * products.value * factor);
            const double of_sums = factor * (gradients.magnitude + std::fabs(y) * products.magnitude * factor);
            // What f32 cannot tell of a difference from the mean, where all are alike.
            const double lost = cols == 1 ? 3e-4 * factor * factor : 0.0;
            check("layer_norm_backward", at, args.d_x[at], want.value, 2e-6 * (want.magnitude + 3.0 * of_sums) + lost);
        }
        if (cols < 3) continue;
        for (int i : {0, cols / 2, cols - 1}) {
            std::vector<double> moved(row, row + cols);
            const double step = 1e-4;
            moved[i] = row[i] + step;
            double slope = loss(moved, args.weight, d);
            moved[i] = row[i] - step;
            slope = (slope - loss(moved, args.weight, d)) / (2 * step);
            const size_t at = size_t(r) * cols + i;
            check("layer_norm_backward's slope", at, args.d_x[at] - double(before[at]), slope, 2e-5 * (1.0 + std::fabs(slope)));
        }
    }
}

int main() {
    for_orders([](unsigned seed) {
        for (int cols : {1, 3, 64, 255, 576, 1024, 4097}) run(3, cols, seed);
    });
}
