#include "../../gather.cu"

#include <cstring>

#include "check.hpp"

void run(size_t rows, size_t row_bytes, size_t off, size_t out_off, unsigned seed) {
    Random random(rows * 100 + row_bytes);
    size_t source_rows = rows / 2 + 1;
    Buffer<u8> x(source_rows * row_bytes + off), out(rows * row_bytes + out_off + 1);
    for (size_t i = 0; i < x.size(); i++) x[i] = u8(random.bits());
    Buffer<u32> indices(rows);
    for (size_t i = 0; i < rows; i++) indices[i] = u32(random.below(int(source_rows)));
    GatherArgs args{x.get() + off, indices.get(), out.get() + out_off, row_bytes};
    gather_rows(Dim3{unsigned(rows)}, Dim3{256}, 0, &args, seed);
    for (size_t i = 0; i < rows; i++) {
        const u8* want = x.get() + off + indices[i] * row_bytes;
        if (memcmp(out.get() + out_off + i * row_bytes, want, row_bytes)) fail("gather_rows: row " + std::to_string(i));
    }
    if (out[out.size() - 1] != 0xff || (out_off > 0 && out[0] != 0xff)) fail("gather_rows writes outside its output");
}

int main() {
    for_orders([](unsigned seed) {
        for (size_t row_bytes : {1, 2, 4, 12, 16, 576, 4100, 8192, 70000}) {
            for (size_t rows : {1, 5}) {
                run(rows, row_bytes, 0, 0, seed);
                run(rows, row_bytes, 4, 16, seed);
                run(rows, row_bytes, 16, 1, seed);
            }
        }
    });
}
