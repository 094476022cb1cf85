#include "../../lora_mma.cu"

#include "lora_case.hpp"

void launch(LoraCase& c, unsigned seed) {
    unsigned targets = unsigned(c.specs.size()), outputs = 0, tiles = (unsigned(c.rows) + 63) / 64;
    for (const TargetSpec& spec : c.specs) outputs = std::max(outputs, unsigned(spec.features));
    unsigned slabs = targets * ((unsigned(c.args.max_rank) + 15) / 16);
    lora_shrink_mma(Dim3{tiles, unsigned(c.args.splits), (slabs + 3) / 4}, Dim3{128}, 0, &c.args, seed);
    lora_expand_mma(Dim3{tiles, (outputs + 255) / 256, targets}, Dim3{256}, 0, &c.args, seed);
}

struct Spec {
    int rows, cols;
    std::vector<TargetSpec> targets;
    std::vector<int> ranks;
    int x_type, longest, long_run, split_len;
};

// hi and lo of both operands leave out 2^-18 of each value, and lo times lo; then the same for the low-rank product.
constexpr double BOUND = 0x1.8p-16;

void run(const Spec& spec, unsigned seed) {
    Random random(uint64_t(spec.rows) * 7 + uint64_t(spec.cols) + seed);
    std::vector<u32> slots = random_slots(random, spec.rows, 5, spec.longest);
    int x_stride = spec.cols + random.below(2) * 8;
    LoraCase c(random.bits() % 1000, spec.cols, spec.targets, slots, 5, spec.ranks, spec.x_type, false, x_stride,
               spec.split_len);
    c.args.long_run = spec.long_run;
    std::vector<int> lengths = run_lengths(c.slots);
    launch(c, seed);
    std::string what = "lora of " + std::to_string(spec.rows) + " rows, " + std::to_string(spec.cols) + " inputs";
    c.verify(what, BOUND, [&](int row) { return lengths[size_t(row)] >= spec.long_run; });
}

int main() {
    for_orders([](unsigned seed) {
        run({1, 1, {{1, false, false}}, {1}, F32, 1, 1, 512}, seed);
        run({70, 100, {{48, true, true}, {17, false, true}, {300, true, false}}, {8, 16, 3}, F32, 40, 1, 64}, seed);
        run({37, 64, {{34, true, true}, {1, true, true}}, {16, 20, 64}, BF16, 20, 5, 96}, seed);
        run({20, 33, {{257, true, false}}, {40, 12, 1}, F16, 12, 3, 32}, seed);
    });
    // All that is large, once.
    run({150, 160, {{33, true, true}, {520, false, false}, {16, true, true}}, {64, 256, 16}, BF16, 90, 16, 96}, 1);
    run({64, 65, {{40, true, true}}, {72, 255}, F32, 64, 1, 96}, 1);
    run({200, 32, {{18, false, true}, {31, true, true}, {8, true, false}}, {8, 16, 24}, F32, 7, 4, 32}, 1);
}
