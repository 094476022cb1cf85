#include "../../backward/transpose.cu"

#include "check.hpp"

void run_transpose(int rows, int cols, unsigned seed) {
    Random random(uint64_t(rows * 1000 + cols));
    auto x = random_floats<float>(random, size_t(rows) * cols);
    Buffer<float> out(size_t(rows) * cols);
    TransposeArgs args{x.get(), out.get(), rows, cols};
    transpose(Dim3{unsigned(cols + 31) / 32, unsigned(rows + 31) / 32}, Dim3{256}, 0, &args, seed);
    for (int r = 0; r < rows; r++) {
        for (int c = 0; c < cols; c++) check("transpose", size_t(c) * rows + r, out[c * rows + r], x[r * cols + c], 0.0);
    }
}

// `LoraFactors::pack_b`, word for word: 16 outputs after the other, and of these all outputs of one rank after the other.
void run_panels(int rank, int n, unsigned seed) {
    Random random(uint64_t(rank * 1000 + n));
    auto x = random_floats<float>(random, size_t(rank) * n);
    Buffer<float> out(size_t(rank) * n);
    TransposePanelsArgs args{x.get(), out.get(), rank, n};
    transpose_panels(Dim3{unsigned(n + 15) / 16}, Dim3{256}, 0, &args, seed);
    size_t at = 0;
    for (int first = 0; first < n; first += 16) {
        for (int r = 0; r < rank; r++) {
            for (int i = first; i < first + 16 && i < n; i++, at++) check("transpose_panels", at, out[at], x[r * n + i], 0.0);
        }
    }
}

int main() {
    for_orders([](unsigned seed) {
        for (int rows : {1, 16, 32, 65}) {
            for (int cols : {1, 31, 64, 100}) {
                run_transpose(rows, cols, seed);
                run_panels(rows, cols, seed);
            }
        }
    });
}
