#include "../../backward/experts_backward.cu"

#include "check.hpp"

void check_route(int rows, int num_experts, int top_k, unsigned seed) {
    Random random(uint64_t(rows * 100 + num_experts));
    size_t pairs = size_t(rows) * top_k;
    Buffer<float> weights = random_floats<float>(random, pairs), d_weights = random_floats<float>(random, pairs),
                  d_logits(size_t(rows) * num_experts);
    Buffer<u32> experts(pairs);
    for (int row = 0; row < rows; row++) {
        int first = random.below(num_experts);
        for (int j = 0; j < top_k; j++) experts[size_t(row) * top_k + j] = u32((first + j) % num_experts);
    }
    RouteBackwardArgs args{weights.get(), experts.get(), d_weights.get(), d_logits.get(), rows, num_experts, top_k, 0};
    route_backward(Dim3{unsigned(rows + 7) / 8}, Dim3{256}, 0, &args, seed);
    for (int row = 0; row < rows; row++) {
        std::vector<double> want(size_t(num_experts), 0.0);
        double mean = 0.0;
        for (int j = 0; j < top_k; j++) mean += double(weights[size_t(row) * top_k + j]) * d_weights[size_t(row) * top_k + j];
        for (int j = 0; j < top_k; j++) {
            size_t at = size_t(row) * top_k + j;
            want[experts[at]] = weights[at] * (d_weights[at] - mean);
        }
        for (int e = 0; e < num_experts; e++) {
            size_t at = size_t(row) * num_experts + e;
            check("route_backward", at, d_logits[at], want[size_t(e)], 1e-5);
        }
    }
}

void check_combine(int rows, int n, int top_k, unsigned seed) {
    Random random(uint64_t(rows * 100 + n));
    size_t pairs = size_t(rows) * top_k;
    Buffer<float> x = random_floats<float>(random, pairs * n), weights = random_floats<float>(random, pairs),
                  d_out = random_floats<float>(random, size_t(rows) * n), d_x(pairs * n), d_weights(pairs);
    Buffer<u32> places(pairs);
    for (size_t i = 0; i < pairs; i++) places[i] = u32((i * 7 + 3) % pairs);
    CombineBackwardArgs args{x.get(), places.get(), weights.get(), d_out.get(), d_x.get(), d_weights.get(), n, top_k};
    combine_backward(Dim3{unsigned(pairs)}, Dim3{256}, 0, &args, seed);
    for (size_t pair = 0; pair < pairs; pair++) {
        const float* d = d_out.get() + pair / size_t(top_k) * n;
        Sum dot;
        for (int i = 0; i < n; i++) {
            size_t at = places[pair] * size_t(n) + i;
            dot.add(double(x[at]) * d[i]);
            check("combine_backward", at, d_x[at], double(weights[pair]) * d[i], 1e-6);
        }
        check("combine_backward of a weight", pair, d_weights[pair], dot.value, 2e-6 * dot.magnitude);
    }
}

int main() {
    for_orders([](unsigned seed) {
        check_route(1, 8, 2, seed);
        check_route(20, 3, 3, seed);
        check_route(9, 70, 5, seed);
        check_combine(1, 5, 2, seed);
        check_combine(3, 300, 2, seed);
        check_combine(4, 1000, 1, seed);
    });
}
