#include "../../gemm_f32.cu"

#include "check.hpp"

using Kernel = void (*)(Dim3, Dim3, size_t, const void*, unsigned);

struct Variant {
    int tile;
    unsigned threads;
    Kernel kernel, nn_kernel;
};
static const Variant VARIANTS[] = {{64, 128, gemm_f32_64x64, gemm_f32_nn_64x64},
                                   {128, 256, gemm_f32_128x128, gemm_f32_nn_128x128}};

struct Shape {
    int rows, n, k;
};

// Rows are `spare` apart, what lies between is NaN. A stride that is no multiple of four leaves rows unaligned.
static Buffer<float> matrix(Random& random, int rows, int cols, int spare) {
    Buffer<float> m(size_t(rows - 1) * (cols + spare) + cols);
    for (int r = 0; r < rows; r++) {
        for (int c = 0; c < cols; c++) m[size_t(r) * (cols + spare) + c] = random.range(-1.0f, 1.0f);
    }
    return m;
}

// `adds`: 0 nothing, 1 a bias, 2 a residual too, 3 to what out holds.
static Buffer<float> run(const Variant& variant, Shape shape, bool nn, int spare, int adds, unsigned seed) {
    Random random(uint64_t(shape.rows * 10000 + shape.n * 100 + shape.k));
    int w_cols = nn ? shape.n : shape.k, out_stride = shape.n + spare;
    auto x = matrix(random, shape.rows, shape.k, spare), w = matrix(random, nn ? shape.k : shape.n, w_cols, spare);
    auto bias = random_floats<float>(random, size_t(shape.n)),
         residual = random_floats<float>(random, size_t(shape.rows) * out_stride);
    Buffer<float> out(residual.size());
    if (adds == 3) memcpy(out.get(), residual.get(), out.size() * sizeof(float));
    const float* added = adds == 3 ? out.get() : adds == 2 ? residual.get() : nullptr;
    bool has_bias = adds == 1 || adds == 2;
    GemmF32Args args{x.get(),        w.get(),   has_bias ? bias.get() : nullptr,
                     added,          out.get(), shape.rows,
                     shape.n,        shape.k,   shape.k + spare,
                     w_cols + spare, out_stride};
    unsigned blocks =
        unsigned(((shape.rows + variant.tile - 1) / variant.tile) * ((shape.n + variant.tile - 1) / variant.tile));
    (nn ? variant.nn_kernel : variant.kernel)(Dim3{blocks}, Dim3{variant.threads}, 0, &args, seed);
    for (int r = 0; r < shape.rows; r++) {
        for (int c = 0; c < out_stride; c++) {
            size_t at = size_t(r) * out_stride + c;
            if (c >= shape.n) {
                if (f32_to_bits(out[at]) != (adds == 3 ? f32_to_bits(residual[at]) : 0xffffffffu))
                    fail("gemm_f32 writes past a row's end");
                continue;
            }
            Sum want;
            for (int k = 0; k < shape.k; k++) {
                want.add(double(x[size_t(r) * (shape.k + spare) + k]) *
                         (nn ? w[size_t(k) * (w_cols + spare) + c] : w[size_t(c) * (w_cols + spare) + k]));
            }
            if (has_bias) want.add(bias[c]);
            if (added) want.add(residual[at]);
            check(std::string("gemm_f32") + (nn ? " nn " : " ") + std::to_string(shape.rows) + " " +
                      std::to_string(shape.n) + " " + std::to_string(shape.k),
                  at, out[at], want.value, 1e-6 * want.magnitude);
        }
    }
    return out;
}

int main() {
    const Shape shapes[] = {{1, 8, 8}, {5, 33, 40}, {63, 64, 64}, {65, 3, 1}, {130, 70, 33}, {2, 200, 7}};
    for_orders([&](unsigned seed) {
        int i = int(seed);
        for (Shape shape : shapes) {
            for (bool nn : {false, true}) {
                i++;
                run(VARIANTS[i % 2], shape, nn, i % 3, i % 4, seed);
                run(VARIANTS[(i + 1) % 2], shape, nn, 4, (i + 1) % 4, seed);
            }
        }
    });
    for (bool nn : {false, true}) {
        auto first = run(VARIANTS[0], {70, 130, 50}, nn, 0, 1, 0), other = run(VARIANTS[1], {70, 130, 50}, nn, 0, 1, 0);
        if (memcmp(first.get(), other.get(), first.size() * sizeof(float))) fail("gemm_f32: the tile changes a sum");
    }
}
