#include "../../lib/gemv.cuh"

#include "../../gemv.cu"

#include "weights.hpp"

using Kernel = void (*)(Dim3, Dim3, size_t, const void*, unsigned);

struct Variant {
    int features, rows;
    Kernel kernels[9];  // by WeightFormat
};
#define VARIANT(features, rows, f32, suffix)                                                                        \
    {                                                                                                               \
        features, rows, {                                                                                           \
            f32, gemv_f16_##suffix, gemv_bf16_##suffix, gemv_q4_0_##suffix, gemv_q4_1_##suffix, gemv_q8_0_##suffix, \
                gemv_q4_k_##suffix, gemv_q6_k_##suffix, gemv_f8_##suffix                                            \
        }                                                                                                           \
    }
static const Variant VARIANTS[] = {
    VARIANT(16, 8, gemv_f32_4x8, 16x8),
    VARIANT(32, 8, nullptr, 32x8),
    VARIANT(32, 16, nullptr, 32x16),
    VARIANT(64, 32, nullptr, 64x32),
};

// Up to three layers and what they add.
struct Layers {
    struct Layer {
        HostWeight weight;
        std::unique_ptr<Planes> planes;
        Buffer<float> bias, residual;
        bool has_bias, has_residual;
    };
    std::vector<Layer> all;

    Layers(Random& random, const FormatInfo& info, std::vector<int> features, int cols, int rows) {
        for (size_t i = 0; i < features.size(); i++) {
            HostWeight weight = random_weight(random, info, features[i], cols);
            auto planes = pack(weight);
            size_t n = size_t(features[i]);
            all.push_back({std::move(weight), std::move(planes), random_floats<float>(random, n),
                           random_floats<float>(random, n * size_t(rows)), i != 1, i != 0});
        }
    }
};

// Rows of x of type T: to a multiple of 8 columns zeros, then what no one may read.
template <class T>
Buffer<T> random_x(Random& random, int rows, int cols, int stride) {
    Buffer<T> x(size_t(rows) * stride);
    for (int r = 0; r < rows; r++) {
        for (int c = 0; c < (cols + 7) / 8 * 8; c++)
            x[size_t(r) * stride + c] = from_f32<T>(c < cols ? random.range(-2.0f, 2.0f) : 0.0f);
    }
    return x;
}

template <class T>
std::vector<Buffer<float>> launch(const Variant& variant, const Layers& layers, const Buffer<T>& x, int stride, int rows,
                                  unsigned seed, bool in_place = false) {
    GemvArgs args{};
    std::vector<Buffer<float>> outs;
    const FormatInfo& info = layers.all[0].weight.info;
    int features = info.format == WEIGHT_F32 ? 4 : variant.features;
    unsigned blocks = 0;
    for (const Layers::Layer& layer : layers.all) {
        int n = layer.weight.rows;
        outs.emplace_back(size_t(rows) * n);
        const float* residual = layer.has_residual ? layer.residual.get() : nullptr;
        if (in_place && residual) {
            memcpy(outs.back().get(), residual, outs.back().size() * sizeof(float));
            residual = outs.back().get();
        }
        args.targets[args.num_targets++] = {layer.planes->weight, layer.has_bias ? layer.bias.get() : nullptr, residual,
                                            outs.back().get()};
        blocks += unsigned((n + features - 1) / features);
    }
    args.x = x.get();
    args.rows = rows;
    args.x_stride = stride;
    args.x_type = element_type<T>();
    variant.kernels[info.format](Dim3{blocks}, Dim3{256}, 0, &args, seed);
    return outs;
}

// Of x that is not bf16, 17 bits count, but with F32 weights. F16 has no more than 11.
template <class T>
double tolerance(const FormatInfo& info) {
    return std::is_same<T, float>::value && info.format != WEIGHT_F32 ? 7e-6 : 2e-6;
}

template <class T>
void run(const Variant& variant, const FormatInfo& info, std::vector<int> features, int cols, int rows, unsigned seed) {
    Random random(uint64_t(cols * 100 + rows));
    Layers layers(random, info, features, cols, rows);
    int stride = (cols + 7) / 8 * 8 + 8;
    Buffer<T> x = random_x<T>(random, rows, cols, stride);
    auto outs = launch(variant, layers, x, stride, rows, seed, seed == 1);
    for (size_t i = 0; i < outs.size(); i++) {
        const Layers::Layer& layer = layers.all[i];
        int n = layer.weight.rows;
        for (int r = 0; r < rows; r++) {
            for (int f = 0; f < n; f++) {
                Sum want;
                for (int c = 0; c < cols; c++)
                    want.add(double(to_f32(x[size_t(r) * stride + c])) * layer.weight.value(f, c));
                if (layer.has_bias) want.add(layer.bias[f]);
                if (layer.has_residual) want.add(layer.residual[size_t(r) * n + f]);
                // Minima and quants cancel in a weight, not in what is added up.
                double magnitude = want.magnitude;
                if (info.format == WEIGHT_Q4_1 || info.format == WEIGHT_Q4_K) magnitude *= 4.0;
                std::string what = std::string("gemv ") + info.name + " " + std::to_string(variant.features) + "x" +
                                   std::to_string(variant.rows) + ", " + std::to_string(cols) + " columns, target " +
                                   std::to_string(i);
                check(what, size_t(r) * n + f, outs[i][size_t(r) * n + f], want.value,
                      tolerance<T>(info) * magnitude + 1e-37);
            }
        }
    }
}

// A row's result is the same bits in every variant, beside any rows, and whatever those are.
static void same_bits(const FormatInfo& info, int cols) {
    Random random(5);
    Layers layers(random, info, {21}, cols, 30);
    Buffer<bf16> x = random_x<bf16>(random, 30, cols, cols);
    auto many = launch(VARIANTS[3], layers, x, cols, 30, 0);
    for (int i = 0; i < cols; i++) x[i] = bf16{0x7fc0};
    for (const Variant& variant : VARIANTS) {
        for (int rows : {2, 5, 30}) {
            if (rows > variant.rows) continue;
            auto few = launch(variant, layers, x, cols, rows, 3);
            for (size_t i = 21; i < few[0].size(); i++) {
                if (f32_to_bits(few[0][i]) != f32_to_bits(many[0][i]))
                    fail(std::string("gemv ") + info.name + ": rows depend on others");
            }
        }
    }
}

static std::vector<int> cols_of(const FormatInfo& info) {
    if (info.block_len == 1) return {1, 7, 72, 600};
    if (info.block_len == 32) return {32, 1184};
    return {256, 1280};
}

int main() {
    for_orders([](unsigned seed) {
        for (const FormatInfo& info : FORMATS) {
            for (int cols : cols_of(info)) {
                bool is_long = cols > 500;
                std::vector<int> features = is_long ? std::vector<int>{33, 5, 16} : std::vector<int>{1, 18};
                if (is_long && seed == 2) features = {7};
                run<float>(VARIANTS[0], info, features, cols, is_long ? 8 : 3, seed);
                run<bf16>(VARIANTS[0], info, features, cols, is_long ? 5 : 1, seed);
                run<f16>(VARIANTS[0], info, {9}, cols, 2, seed);
                if (info.format == WEIGHT_F32) continue;
                run<float>(VARIANTS[1], info, features, cols, is_long ? 7 : 2, seed);
                run<bf16>(VARIANTS[1], info, features, cols, 8, seed);
                run<bf16>(VARIANTS[2], info, features, cols, is_long ? 13 : 16, seed);
                run<bf16>(VARIANTS[3], info, features, cols, is_long ? 27 : 32, seed);
            }
        }
    });
    for (const FormatInfo& info : FORMATS) {
        if (info.format != WEIGHT_F32) same_bits(info, info.block_len == 256 ? 512 : 416);
    }
}
