#include "../../lora_mma.cu"

#include "lora_case.hpp"

// Runs of one slot within tiles of 64 rows, from the definition.
std::vector<int> run_lengths(const Buffer<u32>& slots) {
    int rows = int(slots.size());
    std::vector<int> lengths(slots.size());
    for (int row = 0; row < rows; row++) {
        int first = row, last = row;
        while (first % 64 > 0 && slots[size_t(first) - 1] == slots[size_t(row)]) first--;
        while (last + 1 < rows && (last + 1) % 64 > 0 && slots[size_t(last) + 1] == slots[size_t(row)]) last++;
        lengths[size_t(row)] = last - first + 1;
    }
    return lengths;
}

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

void short_rows(int rows, int longest, int long_run, unsigned seed) {
    Random random(uint64_t(rows) + seed);
    std::vector<u32> row_slots = random_slots(random, rows, 3, longest);
    Buffer<u32> slots(row_slots.size()), list(row_slots.size() + 1);
    for (size_t i = 0; i < row_slots.size(); i++) slots[i] = row_slots[i];
    ShortRowsArgs args{slots.get(), list.get(), rows, long_run};
    lora_short_rows(Dim3{1}, Dim3{1024}, 0, &args, seed);
    std::vector<int> lengths = run_lengths(slots);
    size_t count = 0;
    for (int row = 0; row < rows; row++) {
        if (slots[size_t(row)] == NO_SLOT || lengths[size_t(row)] >= long_run) continue;
        count++;
        check("short row", count, list[count], row, 0.0);
    }
    check("number of short rows", 0, list[0], double(count), 0.0);
    for (size_t i = count + 1; i < list.size(); i++) check("rest of the list", i, list[i], 0xffffffffu, 0.0);
}

int main() {
    for_orders([](unsigned seed) {
        run({1, 1, {{1, false, false}}, {1}, F32, 1, 1, 512}, seed);
        run({70, 100, {{48, true, true}, {17, false, true}, {300, true, false}}, {8, 16, 3}, F32, 40, 1, 64}, seed);
        run({37, 64, {{34, true, true}, {1, true, true}}, {16, 20, 64}, BF16, 20, 5, 96}, seed);
        run({20, 33, {{257, true, false}}, {40, 12, 1}, F16, 12, 3, 32}, seed);
        short_rows(1, 1, 2, seed);
        short_rows(200, 30, 16, seed);
    });
    // All that is large, once.
    run({150, 160, {{33, true, true}, {520, false, false}, {16, true, true}}, {64, 256, 16}, BF16, 90, 16, 96}, 1);
    run({64, 65, {{40, true, true}}, {72, 255}, F32, 64, 1, 96}, 1);
    run({200, 32, {{18, false, true}, {31, true, true}, {8, true, false}}, {8, 16, 24}, F32, 7, 4, 32}, 1);
    short_rows(5000, 50, 16, 1);
    short_rows(2049, 3, 65, 1);
}
