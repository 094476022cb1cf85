#include "../../attention_any.cu"

#include "attention.hpp"

template <class T, class Out, class Kernel>
void run(Kernel kernel, const char* name, const Shape& shape, const std::vector<Sequence>& sequences, int min_rows,
         unsigned seed) {
    Step<T, Out> step(shape, sequences, uint64_t(shape.heads * 1000 + shape.head_dim));
    AttentionArgs args = step.args(min_rows);
    kernel(Dim3{unsigned(step.num_rows), unsigned(shape.heads)}, Dim3{128}, 0, &args, seed);
    step.check_results(name, min_rows, 1 << 20, 2e-7 * std::sqrt(double(shape.head_dim)), 1e-5, exact_query);
}

template <class Out>
void run_types(const Shape& shape, const std::vector<Sequence>& sequences, int min_rows, unsigned seed) {
    run<float, Out>(attention_any_f32, "attention_any_f32", shape, sequences, min_rows, seed);
    run<bf16, Out>(attention_any_bf16, "attention_any_bf16", shape, sequences, min_rows, seed);
    run<f16, Out>(attention_any_f16, "attention_any_f16", shape, sequences, min_rows, seed);
}

// Fault: bad-block
void bad_block() {
    Step<float, float> step({2, 1, 80, 0}, {{37, 3}}, 1);
    step.plant_bad_block(0, 1);
    AttentionArgs args = step.args(1);
    attention_any_f32(Dim3{3, 2}, Dim3{128}, 0, &args, 0);
}

int main(int argc, char**) {
    if (argc > 1) return bad_block(), 0;
    for_orders([](unsigned seed) {
        run_types<float>({1, 1, 1, 0}, {{1, 1}}, 1, seed);
        run_types<float>({3, 1, 80, 0}, {{70, 2}, {0, 0}, {17, 17}, {1, 1}}, 1, seed);
        run_types<bf16>({4, 2, 33, 5}, {{40, 3}, {16, 1}, {3, 3}}, 2, seed);
        run_types<f16>({2, 2, 512, 16}, {{33, 2}}, 1, seed);
        run_types<float>({3, 1, 80, 0, 1.8f, 2.0f}, {{70, 2}, {17, 17}, {1, 1}}, 1, seed);
        for (int window : {1, 40, 1000}) run_types<float>({2, 1, 64, window}, {{60, 3}, {41, 1}}, 1, seed);
    });
    // More sequences than one round of the search takes.
    std::vector<Sequence> many;
    for (int s = 0; s < 70; s++) many.push_back({1 + s % 19, 1 + s % 2 * (s % 19 > 0)});
    run<float, float>(attention_any_f32, "attention_any_f32", {1, 1, 16, 0}, many, 1, 1);
}
