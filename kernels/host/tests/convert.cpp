#include "../../convert.cu"

#include "check.hpp"

template <class X, class Out>
void run(int rows, int cols, int x_stride, unsigned seed) {
    Random random(uint64_t(rows * 1000 + cols));
    auto x = random_floats<X>(random, size_t(rows - 1) * x_stride + cols, 100.0f);
    x[0] = from_f32<X>(cols > 3 ? bits_to_f32(0x7f800000u) : 0.0f);
    // Beyond f16.
    if (cols > 3 && !std::is_same<X, f16>::value) x[1] = from_f32<X>(-1e6f);
    int padded = (cols + 7) / 8 * 8, out_stride = padded + 8;
    Buffer<Out> out(size_t(rows) * out_stride);
    ConvertArgs args{x.get(), out.get(), rows, cols, x_stride, out_stride, element_type<Out>(), element_type<X>()};
    convert(Dim3{unsigned(rows * padded / 8 + 255) / 256}, Dim3{256}, 0, &args, seed);
    for (int r = 0; r < rows; r++) {
        for (int c = 0; c < out_stride; c++) {
            float value = c < cols ? to_f32(x[size_t(r) * x_stride + c]) : 0.0f;
            if (std::is_same<Out, f16>::value && value < -9e5f) value = -65504.0f;
            Out want = from_f32<Out>(value);
            if (c >= padded) memset(static_cast<void*>(&want), 0xff, sizeof(Out));
            if (memcmp(&want, &out[size_t(r) * out_stride + c], sizeof(Out))) {
                fail("convert: row " + std::to_string(r) + ", column " + std::to_string(c) + " of " + std::to_string(cols));
            }
        }
    }
}

int main() {
    for_orders([](unsigned seed) {
        for (int cols : {1, 4, 7, 8, 12, 33, 1000}) {
            for (int spare : {0, 1, 4}) {
                run<float, bf16>(5, cols, cols + spare, seed);
                run<float, f16>(1, cols, cols + spare, seed);
                run<float, float>(3, cols, cols + spare, seed);
                run<bf16, bf16>(2, cols, cols + spare, seed);
                run<bf16, f16>(2, cols, cols + spare, seed);
                run<f16, float>(2, cols, cols + spare, seed);
            }
        }
    });
}
