#include "../../gemv_experts.cu"

#include "weights.hpp"

using Kernel = void (*)(Dim3, Dim3, size_t, const void*, unsigned);

// By WeightFormat.
#define VARIANT(f32, suffix)                                                                                              \
    {                                                                                                                     \
        f32, gemv_experts_f16_##suffix, gemv_experts_bf16_##suffix, gemv_experts_q4_0_##suffix, gemv_experts_q4_1_##suffix, \
            gemv_experts_q8_0_##suffix, gemv_experts_q4_k_##suffix, gemv_experts_q6_k_##suffix, gemv_experts_f8_##suffix      \
    }
static const Kernel NARROW[] = VARIANT(gemv_experts_f32_4x8, 16x8);
static const Kernel WIDE[] = VARIANT(nullptr, 64x32);

// Experts of so many rows each, some of none.
template <class T>
void run(bool wide, const FormatInfo& info, int features, int cols, std::vector<int> counts, unsigned seed) {
    Random random(uint64_t(cols * 100 + features));
    size_t num_experts = counts.size();
    std::vector<HostWeight> weights;
    std::vector<std::unique_ptr<Planes>> planes;
    Buffer<Weight> table(num_experts);
    Buffer<u32> starts(num_experts + 1);
    int rows = 0;
    for (size_t e = 0; e < num_experts; e++) {
        weights.push_back(random_weight(random, info, features, cols));
        planes.push_back(pack(weights.back()));
        table[e] = planes.back()->weight;
        starts[e] = u32(rows);
        rows += counts[e];
    }
    starts[num_experts] = u32(rows);
    int stride = (cols + 7) / 8 * 8;
    Buffer<T> x(size_t(rows) * stride);
    for (int r = 0; r < rows; r++) {
        for (int c = 0; c < stride; c++) x[size_t(r) * stride + c] = from_f32<T>(c < cols ? random.range(-2.0f, 2.0f) : 0.0f);
    }
    Buffer<float> out(size_t(rows) * features);
    ExpertGemvArgs args{table.get(), starts.get(), x.get(), out.get(), stride, element_type<T>()};
    int of_block = info.format == WEIGHT_F32 ? 4 : wide ? 64 : 16;
    Dim3 grid{unsigned((features + of_block - 1) / of_block), unsigned(num_experts)};
    (wide ? WIDE : NARROW)[info.format](grid, Dim3{256}, 0, &args, seed);
    // Of x that is not bf16, 17 bits count, but with F32 weights.
    double tolerance = std::is_same<T, float>::value && info.format != WEIGHT_F32 ? 7e-6 : 2e-6;
    for (size_t e = 0; e < num_experts; e++) {
        for (u32 r = starts[e]; r < starts[e + 1]; r++) {
            for (int f = 0; f < features; f++) {
                Sum want;
                for (int c = 0; c < cols; c++) want.add(double(to_f32(x[size_t(r) * stride + c])) * weights[e].value(f, c));
                // Minima and quants cancel in a weight, not in what is added up.
                double magnitude = want.magnitude;
                if (info.format == WEIGHT_Q4_1 || info.format == WEIGHT_Q4_K) magnitude *= 4.0;
                std::string what = std::string("gemv_experts ") + info.name + ", expert " + std::to_string(e);
                check(what, size_t(r) * features + f, out[size_t(r) * features + f], want.value, tolerance * magnitude + 1e-37);
            }
        }
    }
}

int main() {
    for_orders([](unsigned seed) {
        for (const FormatInfo& info : FORMATS) {
            int cols = info.block_len == 1 ? 72 : info.block_len == 32 ? 160 : 256;
            run<float>(false, info, 33, cols, {1, 0, 1}, seed);
            run<bf16>(false, info, 18, cols, {0, 11, 3, 17}, seed);
            if (info.format == WEIGHT_F32) continue;
            run<bf16>(true, info, 70, cols, {2, 0, 40, 5}, seed);
        }
    });
}
