#include "../../lora.cu"

#include "lora_case.hpp"

void launch(LoraCase& c, unsigned blocks, unsigned seed) {
    unsigned targets = unsigned(c.specs.size()), outputs = 0;
    for (const TargetSpec& spec : c.specs) outputs = std::max(outputs, unsigned(spec.features));
    lora_shrink(Dim3{blocks, unsigned(c.args.splits), targets}, Dim3{THREADS}, 0, &c.args, seed);
    lora_expand(Dim3{blocks, (outputs + OUTPUTS - 1) / OUTPUTS, targets}, Dim3{THREADS}, 0, &c.args, seed);
}

std::string name(const char* what, int rows, int cols, int x_type) {
    return std::string(what) + " of " + std::to_string(rows) + " rows, " + std::to_string(cols) + " inputs of type " +
           std::to_string(x_type);
}

void all_rows(int rows, int cols, std::vector<TargetSpec> specs, const std::vector<int>& ranks, int x_type,
              int split_len, unsigned seed) {
    Random random(uint64_t(rows) * 7 + uint64_t(cols) + seed);
    bool own_x = random.below(2) == 0;
    std::vector<u32> slots = random_slots(random, rows, 5, 3);
    LoraCase c(random.bits() % 1000, cols, specs, slots, 5, ranks, x_type, own_x, cols + random.below(2) * 3, split_len);
    launch(c, unsigned(rows), seed);
    c.verify(name("lora", rows, cols, x_type), 1e-6, [](int) { return true; });
}

// Fewer blocks than listed rows, and rows that are not listed.
void listed_only(int rows, int max_blocks, unsigned seed) {
    Random random(uint64_t(rows) + seed);
    std::vector<TargetSpec> specs{{40, true, true}, {270, false, true}};
    std::vector<u32> slots = random_slots(random, rows, 4, 2);
    LoraCase c(random.bits() % 1000, 70, specs, slots, 4, {8, 5, 16}, F32, false, 70, 64);
    Buffer<u32> list(1 + size_t(rows), 0xffffffffu);
    std::vector<bool> is_listed(size_t(rows), false);
    list[0] = 0;
    for (int row = 0; row < rows; row++) {
        if (random.below(3) == 0) continue;
        is_listed[size_t(row)] = true;
        list[++list[0]] = u32(row);
    }
    c.args.list = list.get();
    launch(c, unsigned(max_blocks), seed);
    c.verify(name("listed lora", rows, 70, F32), 1e-6, [&](int row) { return is_listed[size_t(row)]; });
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
        all_rows(1, 1, {{1, false, false}}, {1, 3}, F32, 512, seed);
        all_rows(3, 7, {{15, true, true}, {16, false, false}, {33, true, false}}, {1, 3, 8, 16}, BF16, 32, seed);
        all_rows(5, 100, {{48, true, true}, {1, true, true}}, {16, 20, 64}, F16, 32, seed);
        all_rows(2, 1030, {{300, false, true}, {512, true, false}}, {16, 8, 4}, F32, 512, seed);
        all_rows(4, 64, {{34, true, true}, {257, false, true}, {40, true, false}}, {256, 300, 150}, BF16, 64, seed);
        all_rows(2, 33, {{31, false, false}, {17, true, true}}, {135, 257, 2}, F32, 32, seed);
        listed_only(9, 2, seed);
        listed_only(1, 3, seed);
        short_rows(1, 1, 2, seed);
        short_rows(200, 30, 16, seed);
    });
    all_rows(200, 96, {{24, false, true}, {47, true, true}}, {3, 8, 16}, F16, 32, 1);
    short_rows(5000, 50, 16, 1);
    short_rows(2049, 3, 65, 1);
}
