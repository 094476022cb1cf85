#include "../../attention_prefill.cu"

#include "attention.hpp"

template <class T, int HEAD_DIM>
struct Kernel;
#define PREFILL_KERNEL(T, HEAD_DIM)                                                       \
    template <>                                                                           \
    struct Kernel<T, HEAD_DIM> {                                                          \
        static constexpr auto LAUNCH = attention_prefill_##T##_##HEAD_DIM;                \
        static constexpr const char* NAME = "attention_prefill_" #T "_" #HEAD_DIM;        \
        static constexpr size_t SHARED_BYTES = HEAD_DIM == 96 ? 66560 : 640 * HEAD_DIM;   \
    };
PREFILL_KERNEL(bf16, 64)
PREFILL_KERNEL(bf16, 96)
PREFILL_KERNEL(bf16, 128)
PREFILL_KERNEL(f16, 64)
PREFILL_KERNEL(f16, 96)
PREFILL_KERNEL(f16, 128)

// What tensor cores read: the scaled query in the cache's type, its scale to base 2.
template <class T>
double rounded_query(float q, float scale) {
    return double(to_f32(from_f32<T>(q * (scale * LOG2_E)))) * std::log(2.0);
}

template <class T, int HEAD_DIM, class Out>
void launch(Step<T, Out>& step, int min_rows, unsigned seed) {
    AttentionArgs args = step.args(min_rows);
    const int vectors = step.num_rows * (step.shape.heads / step.shape.kv_heads);
    const Dim3 grid{unsigned(step.shape.kv_heads), unsigned((vectors + 127) / 128) + unsigned(step.sequences.size())};
    Kernel<T, HEAD_DIM>::LAUNCH(grid, Dim3{128}, Kernel<T, HEAD_DIM>::SHARED_BYTES, &args, seed);
}

template <class T, int HEAD_DIM, class Out = float>
void run(Shape shape, const std::vector<Sequence>& sequences, int min_rows, unsigned seed) {
    shape.head_dim = HEAD_DIM;
    Step<T, Out> step(shape, sequences, uint64_t(shape.heads * 1000 + HEAD_DIM + shape.window));
    launch<T, HEAD_DIM>(step, min_rows, seed);
    step.check_results(Kernel<T, HEAD_DIM>::NAME, min_rows, 1 << 20, 1e-6, rounding<T>() + 2e-6, rounded_query<T>);
}

// Every type and head size, over chunks of prompts at their beginning and later, and decode rows that are left out.
void ragged(unsigned seed) {
    const std::vector<Sequence> sequences = {{1, 1}, {70, 70}, {40, 1}, {90, 5}, {0, 0}, {2, 2}, {129, 48}};
    run<bf16, 64>({3, 1, 0, 0}, sequences, 2, seed);
    run<f16, 64, f16>({4, 2, 0, 0}, {{50, 37}, {3, 3}}, 1, seed);
    run<bf16, 96>({1, 1, 0, 0}, sequences, 2, seed);
    run<f16, 96>({8, 1, 0, 0}, {{100, 20}}, 1, seed);
    run<bf16, 128, bf16>({4, 1, 0, 0}, {{33, 1}, {81, 35}}, 1, seed);
    run<f16, 128>({2, 2, 0, 0}, {{65, 65}, {64, 10}}, 2, seed);
}

// Fewer heads in a tile than a group has.
void large_group(unsigned seed) { run<bf16, 64>({150, 1, 0, 0}, {{20, 2}}, 1, seed); }

void windows(unsigned seed) {
    for (int window : {1, 5, 16, 40, 300}) run<bf16, 64>({2, 1, 0, window}, {{60, 60}, {150, 70}}, 1, seed);
    // A warp that sees just the last position of a tile.
    run<bf16, 64>({2, 1, 0, 40}, {{118, 64}}, 1, seed);
    run<f16, 96>({1, 1, 0, 50}, {{200, 140}}, 1, seed);
    run<bf16, 128>({1, 1, 0, 100}, {{400, 3}}, 1, seed);
}

// Block ids past a warp's first 64 visits, and tiles that are visible as a whole.
void long_context(unsigned seed) { run<bf16, 64>({1, 1, 0, 0}, {{4230, 2}}, 1, seed); }

// More sequences than one round of the search takes, some left out.
void many_sequences(unsigned seed) {
    std::vector<Sequence> sequences;
    for (int s = 0; s < 70; s++) sequences.push_back({s % 5 + 1, s % 3 == 0 ? 1 : s % 5 + 1});
    run<f16, 64>({1, 1, 0, 0}, sequences, 2, seed);
}

// Sharp softmaxes: the maximum moves by a lot, and by less than the slack.
void large_scores(unsigned seed) {
    for (float spread : {4.0f, 9.0f}) run<bf16, 64>({2, 1, 0, 0, spread}, {{300, 20}}, 1, seed);
}

// Bounds near the scores.
void bounded(unsigned seed) {
    run<bf16, 64>({2, 1, 0, 0, 4.0f, 2.0f}, {{100, 20}, {3, 3}}, 1, seed);
    run<f16, 96>({1, 1, 0, 50, 1.8f, 50.0f}, {{200, 140}}, 1, seed);
    run<bf16, 128>({2, 2, 0, 0, 1.8f, 1.0f}, {{65, 65}}, 1, seed);
}

// Without lse.
void no_lse() {
    Step<bf16, float> step({2, 1, 64, 0}, {{20, 4}}, 7);
    AttentionArgs args = step.args(1);
    args.lse = nullptr;
    attention_prefill_bf16_64(Dim3{1, 1}, Dim3{128}, 40960, &args, 0);
    for (size_t i = 0; i < step.out.size(); i++) check("without lse", i, step.out[i], 0.0, 1.8);
}

// Fault: bad-block
void bad_block() {
    Step<bf16, float> step({2, 1, 64, 0}, {{100, 3}}, 1);
    step.plant_bad_block(0, 5);
    launch<bf16, 64>(step, 1, 0);
}

int main(int argc, char**) {
    if (argc > 1) return bad_block(), 0;
    for_orders([](unsigned seed) {
        ragged(seed);
        windows(seed);
        large_group(seed);
        large_scores(seed);
        bounded(seed);
    });
    long_context(1);
    many_sequences(0);
    no_lse();
}
