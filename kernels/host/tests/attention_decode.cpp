#include "../../attention_decode.cu"

#include "attention.hpp"

template <class T, int HEAD_DIM>
struct Kernel;
#define DECODE_KERNEL(T, HEAD_DIM)                                                        \
    template <>                                                                           \
    struct Kernel<T, HEAD_DIM> {                                                          \
        static constexpr auto LAUNCH = attention_decode_##T##_##HEAD_DIM;                 \
        static constexpr const char* NAME = "attention_decode_" #T "_" #HEAD_DIM;         \
        static constexpr size_t SHARED_BYTES = HEAD_DIM == 96 ? 53248 : 65536;            \
    };
DECODE_KERNEL(bf16, 64)
DECODE_KERNEL(bf16, 96)
DECODE_KERNEL(bf16, 128)
DECODE_KERNEL(f16, 64)
DECODE_KERNEL(f16, 96)
DECODE_KERNEL(f16, 128)

// Both kernels. What no split wrote stays NaN, so that nothing else may be combined.
template <class T, int HEAD_DIM, class Out>
void launch(Step<T, Out>& step, int num_splits, int split_tokens, unsigned seed) {
    const Shape& shape = step.shape;
    const unsigned num_seqs = unsigned(step.sequences.size());
    const unsigned heads = unsigned(shape.heads), kv_heads = unsigned(shape.kv_heads);
    const size_t parts = size_t(num_seqs) * heads * num_splits;
    const bool is_split = num_splits > 1;
    Buffer<float> partial_out(is_split ? parts * HEAD_DIM : 0), partial_softmax(is_split ? parts * 2 : 0);
    DecodeArgs args{step.args(1), partial_out.get(), partial_softmax.get(), num_splits, split_tokens};
    const unsigned blocks_of_group = (heads / kv_heads + 7) / 8;
    const Dim3 grid{unsigned(num_splits), kv_heads * blocks_of_group, num_seqs};
    Kernel<T, HEAD_DIM>::LAUNCH(grid, Dim3{128}, Kernel<T, HEAD_DIM>::SHARED_BYTES, &args, seed);
    if (is_split) attention_decode_combine(Dim3{heads, num_seqs}, Dim3{128}, 0, &args, seed);
}

template <class T, int HEAD_DIM, class Out = float>
void run(Shape shape, const std::vector<Sequence>& sequences, int num_splits, int split_tokens, unsigned seed) {
    shape.head_dim = HEAD_DIM;
    Step<T, Out> step(shape, sequences, uint64_t(shape.heads * 1000 + HEAD_DIM + shape.window));
    launch<T, HEAD_DIM>(step, num_splits, split_tokens, seed);
    // Queries and weights are sums of two floats of type T.
    const double twice = 2.0 * rounding<T>() * rounding<T>();
    step.check_results(Kernel<T, HEAD_DIM>::NAME, 1, 1, twice + 1e-6, twice + 2e-6, exact_query);
}

template <int HEAD_DIM>
void run_types(const Shape& shape, const std::vector<Sequence>& sequences, int num_splits, int split_tokens, unsigned seed) {
    run<bf16, HEAD_DIM>(shape, sequences, num_splits, split_tokens, seed);
    run<f16, HEAD_DIM>(shape, sequences, num_splits, split_tokens, seed);
}

// Contexts around the ends of splits, of blocks and of a warp's visits; chunks of prompts, which are not decode's, in between.
void ragged(unsigned seed) {
    const std::vector<Sequence> sequences = {{1, 1}, {64, 1}, {20, 3}, {65, 1}, {150, 1}, {128, 1}, {0, 0}, {16, 16}, {17, 1}};
    run_types<64>({3, 1, 0, 0}, sequences, 3, 64, seed);
    run_types<96>({4, 2, 0, 0}, sequences, 5, 32, seed);
    run_types<128>({4, 1, 0, 0}, sequences, 10, 16, seed);
    run_types<128>({2, 2, 0, 0}, sequences, 1, 160, seed);
}

void windows(unsigned seed) {
    for (int window : {1, 5, 16, 40, 300}) run<bf16, 64>({2, 1, 0, window}, {{1, 1}, {40, 1}, {130, 1}, {97, 1}}, 3, 48, seed);
    run<f16, 96>({1, 1, 0, 20}, {{100, 1}}, 1, 112, seed);
    run<f16, 128>({1, 1, 0, 70}, {{250, 1}}, 4, 64, seed);
}

// A warp's visits go round its buffers many times, and past 64 block ids; a combining lane has several splits.
void long_context(unsigned seed) {
    run<bf16, 64>({8, 1, 0, 0}, {{4230, 1}}, 1, 4240, seed);
    run<f16, 64>({1, 1, 0, 0}, {{1200, 1}}, 80, 16, seed);
}

void groups(unsigned seed) {
    for (int group : {1, 7, 8, 9, 16, 19}) run<bf16, 64>({2 * group, 2, 0, 0}, {{35, 1}, {5, 1}}, 2, 32, seed);
    run<f16, 128, bf16>({16, 2, 0, 0}, {{35, 1}}, 2, 32, seed);
    run<bf16, 96, f16>({5, 1, 0, 0}, {{35, 1}}, 1, 48, seed);
    run<bf16, 64, bf16>({3, 1, 0, 0}, {{35, 1}}, 1, 48, seed);
}

// Sharp softmaxes: the maximum moves by a lot from block to block.
void large_scores(unsigned seed) { run_types<64>({4, 1, 0, 0, 9.0f}, {{90, 1}, {200, 1}}, 2, 128, seed); }

// Bounds near the scores.
void bounded(unsigned seed) {
    run_types<64>({4, 1, 0, 0, 4.0f, 2.0f}, {{90, 1}, {200, 1}}, 2, 128, seed);
    run_types<96>({2, 1, 0, 20, 1.8f, 50.0f}, {{100, 1}}, 1, 112, seed);
    run_types<128>({2, 2, 0, 0, 1.8f, 1.0f}, {{65, 1}, {3, 1}}, 5, 16, seed);
}

// Without lse.
void no_lse() {
    Step<bf16, float> step({2, 1, 64, 0}, {{20, 1}}, 7);
    DecodeArgs args{step.args(1), nullptr, nullptr, 1, 32};
    args.attention.lse = nullptr;
    attention_decode_bf16_64(Dim3{1, 1, 1}, Dim3{128}, 65536, &args, 0);
    for (size_t i = 0; i < step.out.size(); i++) check("without lse", i, step.out[i], 0.0, 1.8);
}

// Fault: bad-block
void bad_block() {
    Step<bf16, float> step({2, 1, 64, 0}, {{37, 1}}, 1);
    step.plant_bad_block(0, 2);
    launch<bf16, 64>(step, 1, 48, 0);
}

int main(int argc, char**) {
    if (argc > 1) return bad_block(), 0;
    for_orders([](unsigned seed) {
        ragged(seed);
        windows(seed);
        groups(seed);
        large_scores(seed);
        bounded(seed);
    });
    long_context(1);
    no_lse();
}
