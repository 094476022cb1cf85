#include "../../gemm.cu"

#include "check.hpp"

using Kernel = void (*)(Dim3, Dim3, size_t, const void*, unsigned);

struct Variant {
    int rows, cols;
    unsigned threads;
    size_t shared_bytes;
    Kernel bf16_kernel, f16_kernel, nn_bf16_kernel, nn_f16_kernel;
};
#define VARIANT(rows, cols, threads, bytes) \
    {rows,                                  \
     cols,                                  \
     threads,                               \
     bytes,                                 \
     gemm_bf16_##rows##x##cols,             \
     gemm_f16_##rows##x##cols,              \
     gemm_nn_bf16_##rows##x##cols,          \
     gemm_nn_f16_##rows##x##cols}
static const Variant VARIANTS[] = {VARIANT(32, 64, 128, 24576), VARIANT(64, 64, 128, 32768), VARIANT(128, 128, 256, 65536)};

struct Shape {
    int rows, n, k;
};

// A matrix whose rows end in zeros up to a multiple of 8, and then in NaN up to the stride.
template <class T>
struct Matrix {
    int rows, cols, stride;
    Buffer<T> at;

    Matrix(Random& random, int rows, int cols)
        : rows(rows), cols(cols), stride((cols + 7) / 8 * 8 + 8), at(size_t(rows - 1) * stride + size_t(cols + 7) / 8 * 8) {
        for (int r = 0; r < rows; r++) {
            for (int c = 0; c < (cols + 7) / 8 * 8; c++)
                at[size_t(r) * stride + c] = from_f32<T>(c < cols ? random.range(-1.0f, 1.0f) : 0.0f);
        }
    }
    double value(int row, int col) const { return to_f32(at[size_t(row) * stride + col]); }
};

// What a launch adds and where it goes.
enum class Adds { Nothing, Bias, BiasAndResidual, Itself };

template <class T, class Out, bool NN>
Buffer<Out> run(const Variant& variant, Shape shape, Adds adds, unsigned seed) {
    Random random(uint64_t(shape.rows * 10000 + shape.n * 100 + shape.k));
    Matrix<T> x(random, shape.rows, shape.k), w(random, NN ? shape.k : shape.n, NN ? shape.n : shape.k);
    auto bias = random_floats<float>(random, size_t(shape.n));
    int out_stride = shape.n + shape.k % 3;
    size_t out_len = size_t(shape.rows) * out_stride;
    auto residual = random_floats<float>(random, out_len);
    Buffer<Out> out(out_len);
    if (adds == Adds::Itself) memcpy(static_cast<void*>(out.get()), residual.get(), out_len * sizeof(Out));
    bool has_bias = adds == Adds::Bias || adds == Adds::BiasAndResidual;
    const void* added = adds == Adds::Itself            ? static_cast<const void*>(out.get())
                        : adds == Adds::BiasAndResidual ? residual.get()
                                                        : nullptr;
    GemmArgs args{x.at.get(),
                  w.at.get(),
                  has_bias ? bias.get() : nullptr,
                  static_cast<const float*>(added),
                  out.get(),
                  shape.rows,
                  shape.n,
                  shape.k,
                  x.stride,
                  w.stride,
                  out_stride,
                  element_type<Out>(),
                  0};
    bool is_bf16 = std::is_same<T, bf16>::value;
    Kernel kernel = NN ? (is_bf16 ? variant.nn_bf16_kernel : variant.nn_f16_kernel)
                       : (is_bf16 ? variant.bf16_kernel : variant.f16_kernel);
    unsigned blocks =
        unsigned(((shape.rows + variant.rows - 1) / variant.rows) * ((shape.n + variant.cols - 1) / variant.cols));
    kernel(Dim3{blocks}, Dim3{variant.threads}, variant.shared_bytes, &args, seed);
    for (int r = 0; r < shape.rows; r++) {
        for (int c = 0; c < out_stride; c++) {
            size_t at = size_t(r) * out_stride + c;
            if (c >= shape.n) {
                uint32_t bits = 0, unwritten = 0xffffffff;
                memcpy(&bits, &out[at], sizeof(Out));
                if (adds == Adds::Itself) memcpy(&unwritten, &residual[at], 4);
                if (bits << (32 - 8 * sizeof(Out)) != unwritten << (32 - 8 * sizeof(Out)))
                    fail("gemm writes past a row's end");
                continue;
            }
            Sum want;
            for (int k = 0; k < shape.k; k++) want.add(x.value(r, k) * (NN ? w.value(k, c) : w.value(c, k)));
            if (has_bias) want.add(bias[c]);
            if (added) want.add(residual[at]);
            std::string what = "gemm " + std::to_string(variant.rows) + "x" + std::to_string(variant.cols) +
                               (NN ? " nn " : " ") + std::to_string(shape.rows) + " " + std::to_string(shape.n) + " " +
                               std::to_string(shape.k);
            double bound = 2e-6 * want.magnitude;
            if (sizeof(Out) == 2) bound += rounding<Out>(want.value);
            check(what, at, to_f32(out[at]), want.value, bound);
        }
    }
    return out;
}

template <bool NN>
void all(unsigned seed) {
    const Shape shapes[] = {{1, 8, 8},  {5, 33, 40},    {63, 64, 64},  {64, 65, 96},
                            {65, 8, 7}, {130, 200, 72}, {31, 200, 33}, {2, 3, 320}};
    int i = int(seed);
    for (Shape shape : shapes) {
        const Variant& variant = VARIANTS[i++ % 3];
        run<bf16, float, NN>(variant, shape, Adds::BiasAndResidual, seed);
        run<f16, float, NN>(variant, shape, Adds::Itself, seed);
        if (shape.rows > 60) continue;
        run<bf16, bf16, NN>(variant, shape, Adds::Bias, seed);
        run<f16, f16, NN>(variant, shape, Adds::Nothing, seed);
    }
}

// The order of a sum is the same in all variants.
template <bool NN>
void same_bits() {
    Shape shape{70, 130, 168};
    auto first = run<bf16, float, NN>(VARIANTS[0], shape, Adds::Bias, 0);
    for (int i = 1; i < 3; i++) {
        auto other = run<bf16, float, NN>(VARIANTS[i], shape, Adds::Bias, 0);
        if (memcmp(first.get(), other.get(), first.size() * sizeof(float))) fail("gemm: the tile changes a sum");
    }
}

// More tiles of rows than a group of blocks has.
static void many_rows() { run<bf16, float, false>(VARIANTS[0], {300, 70, 8}, Adds::Nothing, 1); }

int main() {
    for_orders([](unsigned seed) {
        all<false>(seed);
        all<true>(seed);
    });
    same_bits<false>();
    same_bits<true>();
    many_rows();
}
