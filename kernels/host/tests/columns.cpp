#include "../../columns.cu"

#include "check.hpp"

void run(int groups, int from_len, int to_len, int from_col, int to_col, int width, unsigned seed) {
    Random random(uint64_t(groups * 1000 + width));
    auto from = random_floats<float>(random, size_t(groups) * from_len);
    Buffer<float> to(size_t(groups) * to_len);
    ColumnsArgs args{from.get(), to.get(), groups, from_len, to_len, from_col, to_col, width};
    copy_columns(Dim3{unsigned((groups + 7) / 8)}, Dim3{256}, 0, &args, seed);
    for (int group = 0; group < groups; group++) {
        for (int col = 0; col < to_len; col++) {
            const size_t at = size_t(group) * to_len + col;
            const int of = col - to_col;
            if (of < 0 || of >= width) {
                if (!std::isnan(to[at])) fail("copy_columns writes other columns");
            } else {
                check("copy_columns", at, to[at], from[size_t(group) * from_len + from_col + of], 0.0);
            }
        }
    }
}

int main() {
    for_orders([](unsigned seed) {
        run(1, 3, 1, 1, 0, 1, seed);
        run(9, 192, 64, 128, 0, 64, seed);
        run(40, 33, 100, 0, 67, 33, seed);
        run(8, 2000, 1000, 1000, 0, 1000, seed);
    });
}
