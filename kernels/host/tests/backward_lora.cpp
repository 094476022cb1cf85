#include "../../backward/lora_backward.cu"

#include "check.hpp"

unsigned tiles(int n, int tile) { return unsigned((n + tile - 1) / tile); }

// A part in multiples of the kernels' step.
int per_part(int n, int parts) { return (n + parts * 16 - 1) / (parts * 16) * 16; }

// The smallest variant that has all ranks at once, or the largest.
using Kernel = void (*)(Dim3, Dim3, size_t, const void*, unsigned);
struct Variant {
    int narrow;
    Kernel shrink, outer;
};
Variant variant_for(int rank) {
    if (rank <= 16) return {16, lora_shrink_16, lora_outer_16};
    if (rank <= 32) return {32, lora_shrink_32, lora_outer_32};
    return {64, lora_shrink_64, lora_outer_64};
}

void add_up(const Buffer<float>& parts, float* out, size_t len, int num_parts, bool accumulate, unsigned seed) {
    LoraSumArgs args{parts.get(), out, len, num_parts, accumulate};
    lora_sum(Dim3{unsigned((len + 1023) / 1024)}, Dim3{256}, 0, &args, seed);
}

// low = scale x factor
template <class T>
void shrink_to(float* low, const T* x, const float* factor, int rows, int cols, int rank, int parts, float scale,
               unsigned seed) {
    const Variant variant = variant_for(rank);
    const int cols_per_part = per_part(cols, parts);
    const unsigned num_parts = tiles(cols, cols_per_part);
    const size_t len = size_t(rows) * rank;
    Buffer<float> room(len * num_parts);
    float* to = num_parts == 1 ? low : room.get();
    LoraShrinkArgs args{x, factor, to, element_type<T>(), rows, cols, rank, cols_per_part, scale};
    variant.shrink(Dim3{tiles(rows, 4096 / variant.narrow), tiles(rank, variant.narrow), num_parts}, Dim3{256}, 0, &args, seed);
    if (num_parts > 1) add_up(room, low, len, int(num_parts), false, seed);
}

// sum += lowᵀ x
template <class T>
void outer_to(float* sum, const float* low, const T* x, int rows, int cols, int rank, int parts, unsigned seed) {
    const Variant variant = variant_for(rank);
    const int rows_per_part = per_part(rows, parts);
    const unsigned num_parts = tiles(rows, rows_per_part);
    const size_t len = size_t(rank) * cols;
    Buffer<float> room(len * num_parts);
    float* to = num_parts == 1 ? sum : room.get();
    LoraOuterArgs args{low, x, to, element_type<T>(), rows, cols, rank, rows_per_part, num_parts == 1};
    variant.outer(Dim3{tiles(cols, 4096 / variant.narrow), tiles(rank, variant.narrow), num_parts}, Dim3{256}, 0, &args, seed);
    if (num_parts > 1) add_up(room, sum, len, int(num_parts), true, seed);
}

// `LoraFactors::pack_b` of a matrix whose element (col, r) is a[r, col].
Buffer<float> panels_of(const Buffer<float>& a, int rank, int cols) {
    Buffer<float> panels(a.size());
    size_t at = 0;
    for (int first = 0; first < cols; first += 16) {
        for (int r = 0; r < rank; r++) {
            for (int col = first; col < first + 16 && col < cols; col++) panels[at++] = a[size_t(r) * cols + col];
        }
    }
    return panels;
}

// `offset`: x, the gradients and the products may begin at any float.
template <class T>
void run(int rows, int cols, int rank, int parts, int offset, unsigned seed) {
    Random random(uint64_t(rows * 1000 + cols * 10 + rank));
    const float scale = 0.5f;
    auto x = random_floats<T>(random, size_t(rows) * cols + offset);
    auto a = random_floats<float>(random, size_t(rank) * cols);
    Buffer<float> factor(a.size());
    for (int r = 0; r < rank; r++) {
        for (int col = 0; col < cols; col++) factor[size_t(col) * rank + r] = a[size_t(r) * cols + col];
    }

    auto x_at = [&](int row, int col) { return double(to_f32(x[size_t(row) * cols + col + offset])); };
    Buffer<float> low(size_t(rows) * rank + offset);
    auto low_at = [&](int row, int r) { return double(low[size_t(row) * rank + r + offset]); };
    shrink_to(low.get() + offset, x.get() + offset, factor.get(), rows, cols, rank, parts, scale, seed);
    for (int row = 0; row < rows; row++) {
        for (int r = 0; r < rank; r++) {
            Sum want;
            for (int col = 0; col < cols; col++) want.add(x_at(row, col) * a[size_t(r) * cols + col]);
            const size_t at = size_t(row) * rank + r;
            check("low", at, low_at(row, r), scale * want.value, 1e-6 * want.magnitude);
        }
    }

    auto before = random_floats<float>(random, size_t(rank) * cols);
    Buffer<float> sum(before.size() + offset);
    for (size_t i = 0; i < before.size(); i++) sum[i + offset] = before[i];
    outer_to(sum.get() + offset, low.get() + offset, x.get() + offset, rows, cols, rank, parts, seed);
    for (int r = 0; r < rank; r++) {
        for (int col = 0; col < cols; col++) {
            const size_t at = size_t(r) * cols + col;
            Sum want;
            want.add(before[at]);
            for (int row = 0; row < rows; row++) want.add(low_at(row, r) * x_at(row, col));
            check("sum", at, sum[at + offset], want.value, 1e-6 * want.magnitude);
        }
    }

    auto d_before = random_floats<float>(random, size_t(rows) * cols);
    Buffer<float> d_x(d_before.size() + offset);
    for (size_t i = 0; i < d_before.size(); i++) d_x[i + offset] = d_before[i];
    auto panels = panels_of(a, rank, cols);
    LoraExpandArgs args{low.get() + offset, panels.get(), d_x.get() + offset, rows, cols, rank};
    lora_expand(Dim3{tiles(rows, 64), tiles(cols, 64)}, Dim3{256}, 0, &args, seed);
    for (int row = 0; row < rows; row++) {
        for (int col = 0; col < cols; col++) {
            const size_t at = size_t(row) * cols + col;
            Sum want;
            want.add(d_before[at]);
            for (int r = 0; r < rank; r++) want.add(low_at(row, r) * a[size_t(r) * cols + col]);
            check("d_x", at, d_x[at + offset], want.value, 1e-6 * want.magnitude);
        }
    }
    if (offset && !(std::isnan(low[0]) && std::isnan(sum[0]) && std::isnan(d_x[0]))) fail("an operand's front is overrun");
}

int main() {
    for_orders([](unsigned seed) {
        run<float>(1, 1, 1, 1, 0, seed);
        run<float>(300, 36, 16, 1, 0, seed);
        run<float>(37, 270, 16, 3, 0, seed);
        run<float>(70, 33, 5, 2, 1, seed);
        run<float>(130, 68, 32, 1, 0, seed);
        run<float>(20, 130, 17, 2, 1, seed);
        run<float>(67, 100, 64, 2, 0, seed);
        run<float>(35, 70, 70, 1, 0, seed);
        run<bf16>(40, 50, 8, 2, 0, seed);
        run<f16>(40, 48, 8, 1, 1, seed);
    });
}
