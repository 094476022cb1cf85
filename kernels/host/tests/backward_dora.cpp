#include "../../backward/dora_backward.cu"

#include "check.hpp"

void run(int rows, int cols, int rows_per_part, bool with_bias, bool with_residual, unsigned seed) {
    Random random(uint64_t(rows * 1000 + cols));
    const size_t n = size_t(rows) * cols;
    auto out = random_floats<float>(random, n), residual = random_floats<float>(random, n);
    auto d_out = random_floats<float>(random, n);
    auto bias = random_floats<float>(random, cols), out_scale = random_floats<float>(random, cols);
    auto magnitude = random_floats<float>(random, cols, 2.0f), before = random_floats<float>(random, cols);
    if (cols > 3) magnitude[3] = 0.0f;
    const unsigned parts = unsigned((rows + rows_per_part - 1) / rows_per_part);
    Buffer<float> scaled(n), room(size_t(parts) * cols), d_magnitude(cols);
    for (int o = 0; o < cols; o++) d_magnitude[o] = before[o];
    DoraBackwardArgs args{};
    args.out = out.get();
    args.bias = with_bias ? bias.get() : nullptr;
    args.residual = with_residual ? residual.get() : nullptr;
    args.out_scale = out_scale.get();
    args.magnitude = magnitude.get();
    args.d_out = d_out.get();
    args.scaled = scaled.get();
    args.d_magnitude = d_magnitude.get();
    args.parts = room.get();
    args.rows = rows;
    args.cols = cols;
    args.rows_per_part = rows_per_part;
    dora_backward_parts(Dim3{unsigned(cols + 31) / 32, parts}, Dim3{256}, 0, &args, seed);
    dora_backward_sum(Dim3{unsigned(cols + 255) / 256}, Dim3{256}, 0, &args, seed);
    for (int o = 0; o < cols; o++) {
        Sum sum;
        for (int row = 0; row < rows; row++) {
            const size_t at = size_t(row) * cols + o;
            sum.add(double(d_out[at]) * out[at]);
            if (with_bias) sum.add(-double(d_out[at]) * bias[o]);
            if (with_residual) sum.add(-double(d_out[at]) * residual[at]);
            check("scaled", at, scaled[at], double(d_out[at]) * out_scale[o], 0x1p-23);
        }
        if (magnitude[o] == 0.0f) {
            check("d_magnitude of none", size_t(o), d_magnitude[o], before[o], 0.0);
            continue;
        }
        const double bound = 1e-6 * (std::fabs(before[o]) + sum.magnitude / std::fabs(magnitude[o]));
        check("d_magnitude", size_t(o), d_magnitude[o], before[o] + sum.value / magnitude[o], bound);
    }
}

int main() {
    for_orders([](unsigned seed) {
        for (int rows : {1, 7, 130}) {
            for (int cols : {1, 32, 301}) {
                run(rows, cols, 64, false, false, seed);
                run(rows, cols, 64, true, true, seed);
                run(rows, cols, 3, true, false, seed);
            }
        }
    });
}
