// Order, masses and cuts of lib/logits.cuh, each by itself.
#include "../../lib/logits.cuh"

#include "sample_case.hpp"

struct Findings {
    u64 best, best_again, sums[2], cuts[4];
    u32 counts[3];
};

struct LogitsArgs {
    LogitRow row;
    Softmax softmax;
    Findings* findings;
    u64* keys;       // [MAX_CANDIDATES]: the second collection
    float bounds[2];
    u32 wanted;
    u64 wanted_mass;
};

KERNEL(examine, LogitsArgs, LOGIT_THREADS) {
    SHARED(CandidateRoom, room);
    Findings found{};
    Best best = best_of_row(args.row, room.select);
    found.best = best.key;
    // One gathering right after the other.
    found.best_again = block_max_u64(best.own, room.select);
    found.sums[0] = block_sum_u64(threadIdx.x, room.select);
    CandidateKeys keys{args.row, room, 0, 0};
    keys.count = collect_candidates(args.row, args.bounds[0], room);
    found.counts[0] = u32(keys.count);
    found.cuts[0] = cut_to_count(keys, args.wanted, room.select);
    found.cuts[1] = cut_to_mass(keys, args.wanted_mass, args.softmax, room.select);
    found.sums[1] = block_sum_u64(1, room.select);
    keys.count = collect_candidates(args.row, args.bounds[1], room);
    found.counts[1] = u32(keys.count);
    keys.least = found.cuts[0];
    found.cuts[2] = cut_to_mass(keys, args.wanted_mass, args.softmax, room.select);
    found.cuts[3] = cut_to_count(OwnKeys{best.own}, 3, room.select);
    for (int i = threadIdx.x; i < keys.count; i += LOGIT_THREADS) args.keys[i] = room.keys[i];
    if (threadIdx.x == 0) *args.findings = found;
}

u64 key_of(const std::vector<double>& values, int token) { return rank_key(float(values[size_t(token)]), token); }

void run(int vocab, int wanted, float top_p, unsigned seed) {
    Random random(uint64_t(vocab) * 3 + seed);
    std::vector<float> logits = random_logits(random, vocab);
    std::vector<double> values;
    for (float v : logits) values.push_back(sane(v));
    std::vector<int> order = ranked(values);
    double best = values[size_t(order[0])], total = 0.0;
    auto mass = [&](int t) { return std::exp((values[size_t(t)] - best) / 0.7f); };
    for (int t : order) total += mass(t);

    auto device_logits = copy_of(logits);
    Buffer<Findings> findings(1);
    Buffer<u64> keys(MAX_CANDIDATES);
    float bound = float(best) - 0.3f;
    LogitsArgs args{};
    args.row = LogitRow{device_logits.get(), nullptr, vocab, vocab % 4 == 0};
    args.softmax = softmax_of(float(best), 0.7f);
    args.findings = findings.get();
    args.keys = keys.get();
    args.bounds[0] = -INFINITY;
    args.bounds[1] = bound;
    args.wanted = u32(wanted);
    args.wanted_mass = u64(top_p * total * 0x1p44);
    examine(Dim3{1}, Dim3{1024}, 0, &args, seed);

    const Findings& got = findings[0];
    std::string what = "logits of vocabulary " + std::to_string(vocab);
    auto same = [&](const char* part, u64 is, u64 want) {
        if (is != want) fail(what + ": " + part);
    };
    same("best", got.best, key_of(values, order[0]));
    same("best of the threads' best", got.best_again, got.best);
    same("sum of the threads", got.sums[0], 1023 * 512);
    same("sum of ones", got.sums[1], 1024);
    same("number of candidates", got.counts[0], order.size() <= MAX_CANDIDATES ? u32(order.size()) : ~0u);
    same("cut by count", got.cuts[0], size_t(wanted) <= order.size() ? key_of(values, order[size_t(wanted) - 1]) : 0);
    // Masses were rounded: the cut may lie where the sum is as good as wanted.
    auto mass_fits = [&](const char* part, u64 cut, double all) {
        double sum = 0.0, wanted_mass = top_p * total;
        for (int t : order) {
            double before = sum;
            sum += mass(t);
            if (key_of(values, t) == cut && before < wanted_mass * (1 + 1e-6) && sum > wanted_mass * (1 - 1e-6)) return;
        }
        if (cut != 0 || all >= wanted_mass * (1 + 1e-6)) fail(what + ": " + part);
    };
    mass_fits("cut by mass", got.cuts[1], total);
    double kept = 0.0;
    std::vector<u64> near;
    for (size_t i = 0; i < order.size(); i++) {
        if (values[size_t(order[i])] < bound) continue;
        near.push_back(key_of(values, order[i]));
        if (near.back() >= got.cuts[0]) kept += mass(order[i]);
    }
    mass_fits("cut by mass after a cut", got.cuts[2], kept);
    same("number of near candidates", got.counts[1], near.size() <= MAX_CANDIDATES ? u32(near.size()) : ~0u);
    std::vector<u64> listed(keys.get(), keys.get() + (near.size() <= MAX_CANDIDATES ? near.size() : 0));
    std::sort(listed.rbegin(), listed.rend());
    for (size_t i = 0; i < listed.size(); i++) same("near candidates", listed[i], near[i]);
    // Not more threads have a best token than there are groups of four.
    if (vocab >= 13 && got.cuts[3] == 0) fail(what + ": third best of the threads");
}

// The order of keys is that of logits, and back; masses are exact but for rounding down.
void conversions() {
    float ordered[] = {-F32_MAX, -1.0f, -1e-45f, 0.0f, 1e-45f, 2.0f, F32_MAX};
    for (int i = 0; i < 7; i++) {
        u64 key = rank_key(ordered[i], 5);
        if (key_logit(key) != ordered[i] || key_token(key) != 5) fail("a key does not come back");
        if (i > 0 && rank_key(ordered[i], MAX_VOCAB - 1) <= rank_key(ordered[i - 1], 0)) fail("keys are out of order");
    }
    if (rank_key(-0.0f, 3) != rank_key(0.0f, 3) || rank_key(1.0f, 3) <= rank_key(1.0f, 4)) fail("equals are out of order");
    bool sane = sane_logit(NAN) == -INFINITY && sane_logit(INFINITY) == F32_MAX && sane_logit(-INFINITY) == -INFINITY;
    if (!sane) fail("insane logits");
    for (float mass : {0.0f, 1.0f, 0.3f, 4.0f, 3.9999998f, 1e-9f, 0x1p-44f, 0x1.8p-45f, 1e-30f, 1e-45f}) {
        if (fixed_mass(mass) != u64(double(mass) * 0x1p44)) fail("mass " + std::to_string(mass));
    }
}

int main() {
    for_orders([](unsigned seed) {
        run(17, 2, 0.5f, seed);
        run(700, 7, 0.9f, seed);
        run(6003, 900, 0.4f, seed);
    });
    run(4000, 3999, 0.999f, 3);
    conversions();
}
