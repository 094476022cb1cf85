#include "../../experts.cu"

#include <algorithm>

#include "check.hpp"

struct Routed {
    Buffer<float> weights;
    Buffer<u32> experts, places, pair_rows, starts;

    Routed(const Buffer<float>& logits, int rows, int num_experts, int top_k, unsigned seed)
        : weights(size_t(rows) * top_k), experts(size_t(rows) * top_k), places(size_t(rows) * top_k),
          pair_rows(size_t(rows) * top_k), starts(size_t(num_experts) + 1) {
        RouteArgs args{logits.get(),    weights.get(), experts.get(), places.get(), pair_rows.get(),
                       starts.get(), rows,          num_experts,   top_k,        0};
        route(Dim3{unsigned(rows + 7) / 8}, Dim3{256}, 0, &args, seed);
        place_pairs(Dim3{1}, Dim3{1024}, 0, &args, seed);
    }
};

// Logits with some equal ones among them, and, if asked for, some that are no numbers.
Buffer<float> random_logits(Random& random, int rows, int num_experts, bool broken) {
    Buffer<float> logits = random_floats<float>(random, size_t(rows) * num_experts, 3.0f);
    for (size_t i = 0; i < logits.size(); i++) {
        if (random.below(4) == 0) logits[i] = 0.5f;
        if (random.below(16) == 0) logits[i] *= 100.0f;
        if (broken && random.below(2) == 0) logits[i] = random.below(3) == 0 ? -INFINITY : NAN;
    }
    return logits;
}

void check_routing(int rows, int num_experts, int top_k, bool broken, unsigned seed) {
    Random random(uint64_t(rows * 1000 + num_experts * 10 + top_k));
    Buffer<float> logits = random_logits(random, rows, num_experts, broken);
    Routed got(logits, rows, num_experts, top_k, seed);
    std::string what = "route " + std::to_string(rows) + " rows to " + std::to_string(top_k) + " of " + std::to_string(num_experts);
    for (int row = 0; row < rows; row++) {
        const float* l = logits.get() + size_t(row) * num_experts;
        auto value = [&](int e) { return std::isnan(l[e]) ? -INFINITY : l[e]; };
        std::vector<int> order(size_t(num_experts), 0);
        for (int e = 0; e < num_experts; e++) order[size_t(e)] = e;
        std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return value(a) > value(b); });
        double sum = 0.0;
        for (int j = 0; j < top_k; j++) sum += std::exp(double(value(order[size_t(j)])) - value(order[0]));
        for (int j = 0; j < top_k; j++) {
            size_t at = size_t(row) * top_k + j;
            if (int(got.experts[at]) != order[size_t(j)]) fail(what + ": another expert");
            double want = std::exp(double(value(order[size_t(j)])) - value(order[0])) / sum;
            if (!broken) check(what, at, got.weights[at], want, 1e-6 * want + 1e-9);
        }
    }
    // Pairs by expert, rows ascending.
    std::vector<std::pair<u32, size_t>> pairs;
    for (size_t i = 0; i < got.experts.size(); i++) pairs.push_back({got.experts[i], i});
    std::sort(pairs.begin(), pairs.end());
    for (size_t at = 0; at < pairs.size(); at++) {
        size_t pair = pairs[at].second;
        if (got.places[pair] != at || got.pair_rows[at] != pair / size_t(top_k)) fail(what + ": another place");
    }
    for (int e = 0; e <= num_experts; e++) {
        auto before = std::count_if(pairs.begin(), pairs.end(), [&](auto& p) { return int(p.first) < e; });
        if (got.starts[size_t(e)] != size_t(before)) fail(what + ": another start");
    }
}

void check_slots(int rows, int num_experts, int top_k, unsigned seed) {
    Random random(uint64_t(rows + num_experts));
    Buffer<float> logits = random_logits(random, rows, num_experts, false);
    Routed routed(logits, rows, num_experts, top_k, seed);
    Buffer<u32> slots(size_t(rows), NO_SLOT);
    Buffer<float> scales = random_floats<float>(random, size_t(rows));
    for (size_t i = 0; i < slots.size(); i++) {
        if (random.below(3) > 0) slots[i] = u32(random.below(7));
    }
    int pairs = rows * top_k;
    Buffer<u32> pair_slots{size_t(pairs)};
    Buffer<float> pair_scales{size_t(pairs)};
    ExpertSlotsArgs args{slots.get(),       scales.get(), routed.pair_rows.get(), routed.starts.get(), pair_slots.get(),
                         pair_scales.get(), pairs,        num_experts,            100,                 3};
    expert_slots(Dim3{unsigned(pairs + 255) / 256}, Dim3{256}, 0, &args, seed);
    for (int pair = 0; pair < pairs; pair++) {
        size_t row = size_t(pair) / top_k, place = routed.places[size_t(pair)];
        u32 want = slots[row] == NO_SLOT ? NO_SLOT : slots[row] * 100 + 3 * routed.experts[size_t(pair)];
        if (pair_slots[place] != want || pair_scales[place] != scales[row]) fail("expert_slots: another slot or scale");
    }
}

void check_combine(int rows, int n, int top_k, bool weighted, bool with_residual, unsigned seed) {
    Random random(uint64_t(rows * 100 + n));
    size_t pairs = size_t(rows) * top_k;
    Buffer<float> x = random_floats<float>(random, pairs * n), weights = random_floats<float>(random, pairs),
                  residual = random_floats<float>(random, size_t(rows) * n), out(size_t(rows) * n);
    Buffer<u32> places(pairs);
    for (size_t i = 0; i < pairs; i++) places[i] = u32((i * 7 + 3) % pairs);
    if (with_residual && seed == 1) memcpy(out.get(), residual.get(), out.size() * sizeof(float));
    const float* added = seed == 1 ? out.get() : residual.get();
    CombineArgs args{x.get(), places.get(), weighted ? weights.get() : nullptr, with_residual ? added : nullptr, out.get(), n, top_k};
    combine(Dim3{unsigned(rows), unsigned(n + 1023) / 1024}, Dim3{256}, 0, &args, seed);
    for (int row = 0; row < rows; row++) {
        for (int i = 0; i < n; i++) {
            Sum want;
            if (with_residual) want.add(residual[size_t(row) * n + i]);
            for (int j = 0; j < top_k; j++) {
                size_t pair = size_t(row) * top_k + j;
                want.add((weighted ? weights[pair] : 1.0) * double(x[places[pair] * size_t(n) + i]));
            }
            check("combine", size_t(row) * n + i, out[size_t(row) * n + i], want.value, 1e-6 * want.magnitude);
        }
    }
}

int main() {
    for_orders([](unsigned seed) {
        for (bool broken : {false, true}) {
            check_routing(1, 8, 2, broken, seed);
            check_routing(9, 3, 3, broken, seed);
            check_routing(50, 8, 2, broken, seed);
            check_routing(21, 70, 5, broken, seed);
        }
        check_routing(3, 1, 1, false, seed);
        check_routing(2, 1024, 4, false, seed);
        check_slots(1, 8, 2, seed);
        check_slots(40, 5, 3, seed);
        check_slots(200, 33, 2, seed);
        check_combine(1, 4, 2, true, true, seed);
        check_combine(5, 33, 3, true, true, seed);
        check_combine(3, 1500, 2, false, false, seed);
        check_combine(2, 1028, 1, true, false, seed);
    });
}
