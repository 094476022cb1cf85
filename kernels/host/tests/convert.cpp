#include "../../convert.cu"

#include "check.hpp"

template <class Out>
void run(int rows, int cols, int x_stride, unsigned seed) {
    Random random(uint64_t(rows * 1000 + cols));
    auto x = random_floats<float>(random, size_t(rows - 1) * x_stride + cols, 100.0f);
    x[0] = cols > 3 ? bits_to_f32(0x7f800000u) : 0.0f;
    int padded = (cols + 7) / 8 * 8, out_stride = padded + 8;
    Buffer<Out> out(size_t(rows) * out_stride);
    ConvertArgs args{x.get(), out.get(), rows, cols, x_stride, out_stride, element_type<Out>(), 0};
    convert(Dim3{unsigned(rows * padded / 8 + 255) / 256}, Dim3{256}, 0, &args, seed);
    for (int r = 0; r < rows; r++) {
        for (int c = 0; c < out_stride; c++) {
            Out want = from_f32<Out>(c < cols ? x[size_t(r) * x_stride + c] : 0.0f);
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
                run<bf16>(5, cols, cols + spare, seed);
                run<f16>(1, cols, cols + spare, seed);
                run<float>(3, cols, cols + spare, seed);
            }
        }
    });
}
