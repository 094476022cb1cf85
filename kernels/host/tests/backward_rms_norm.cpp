#include "../../backward/rms_norm_backward.cu"

#include "check.hpp"

const float EPS = 1e-5f;

// What is differentiated, for the second witness: Σ d_out x / sqrt(mean(x²) + eps) w.
double loss(const std::vector<double>& x, const float* weight, const float* d_out) {
    double squares = 0.0, sum = 0.0;
    for (double v : x) squares += v * v;
    for (size_t i = 0; i < x.size(); i++) sum += d_out[i] * x[i] * weight[i];
    return sum / std::sqrt(squares / double(x.size()) + EPS);
}

// Tensors may begin at any float: `offset` of them after an aligned one.
void run(int rows, int cols, int offset, unsigned seed) {
    Random random(uint64_t(rows * 1000 + cols));
    const size_t n = size_t(rows) * cols;
    auto x = random_floats<float>(random, n + offset, 3.0f), d_out = random_floats<float>(random, n + offset);
    auto weight = random_floats<float>(random, cols + offset), before = random_floats<float>(random, n);
    Buffer<float> d_x(n + offset);
    for (size_t i = 0; i < n; i++) d_x[i + offset] = before[i];
    RmsNormBackwardArgs args{x.get() + offset, weight.get() + offset, d_out.get() + offset, d_x.get() + offset, cols, EPS};
    rms_norm_backward(Dim3{unsigned(rows)}, Dim3{256}, 0, &args, seed);
    for (int r = 0; r < rows; r++) {
        const float *row = args.x + r * cols, *d = args.d_out + r * cols;
        Sum squares, products;
        for (int i = 0; i < cols; i++) {
            squares.add(double(row[i]) * row[i]);
            products.add(double(args.weight[i]) * d[i] * row[i]);
        }
        const double factor = 1.0 / std::sqrt(squares.value / cols + EPS), cubed = factor * factor * factor;
        for (int i = 0; i < cols; i++) {
            const size_t at = size_t(r) * cols + i;
            Sum want;
            want.add(before[at]);
            want.add(factor * args.weight[i] * d[i]);
            want.add(-cubed / cols * row[i] * products.value);
            const double of_sum = 2e-6 * cubed / cols * std::fabs(row[i]) * products.magnitude;
            check("rms_norm_backward", at, args.d_x[at], want.value, 1e-6 * want.magnitude + of_sum);
        }
        for (int i : {0, cols / 2, cols - 1}) {
            std::vector<double> moved(row, row + cols);
            const double step = 1e-4;
            moved[i] = row[i] + step;
            double slope = loss(moved, args.weight, d);
            moved[i] = row[i] - step;
            slope = (slope - loss(moved, args.weight, d)) / (2 * step);
            const size_t at = size_t(r) * cols + i;
            check("rms_norm_backward's slope", at, args.d_x[at] - double(before[at]), slope, 1e-5 * (1.0 + std::fabs(slope)));
        }
    }
    if (offset && !std::isnan(d_x[0])) fail("rms_norm_backward writes before its output");
}

int main() {
    for_orders([](unsigned seed) {
        for (int cols : {1, 3, 64, 255, 576, 1024, 4097}) {
            run(1, cols, 0, seed);
            run(3, cols, 1, seed);
        }
    });
}
