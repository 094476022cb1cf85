#include "../../backward/dropout.cu"

#include "check.hpp"

// Answers that the authors of Philox publish with Random123.
void known_answers() {
    const Words places[] = {{{0, 0, 0, 0}}, {{~0u, ~0u, ~0u, ~0u}}, {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}};
    const u32 keys[][2] = {{0, 0}, {~0u, ~0u}, {0xa4093822, 0x299f31d0}};
    const Words want[] = {{{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
                          {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
                          {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}};
    for (int i = 0; i < 3; i++) {
        const Words got = philox4x32_10(places[i], keys[i][0], keys[i][1]);
        if (memcmp(&got, &want[i], sizeof(Words)) != 0) fail("philox4x32_10: answer " + std::to_string(i));
    }
}

// Salmon et al., section 3.3, once more, in its own words: bijections of pairs, then the words change places.
u32 word(u32 column, u32 position, u32 example, u32 module, uint64_t seed, u32 step) {
    uint64_t pairs[2] = {column / 4 | uint64_t(position) << 32, example | uint64_t(module) << 32};
    uint64_t key[2] = {(seed ^ (step * 0x9e3779b9u)) & 0xffffffffu, seed >> 32};
    for (int round = 0; round < 10; round++) {
        const uint64_t left = (pairs[0] & 0xffffffffu) * 0xd2511f53u, right = (pairs[1] & 0xffffffffu) * 0xcd9e8d57u;
        pairs[0] = ((right >> 32) ^ (pairs[0] >> 32) ^ key[0]) | right << 32;
        pairs[1] = ((left >> 32) ^ (pairs[1] >> 32) ^ key[1]) | left << 32;
        key[0] = (key[0] + 0x9e3779b9u) & 0xffffffffu;
        key[1] = (key[1] + 0xbb67ae85u) & 0xffffffffu;
    }
    return u32(pairs[column / 2 % 2] >> (column % 2 * 32));
}

void run(int rows, int cols, float probability, bool accumulate, int offset, unsigned seed) {
    Random random(uint64_t(rows * 1000 + cols));
    const size_t n = size_t(rows) * cols;
    auto x = random_floats<float>(random, n + offset), before = random_floats<float>(random, n);
    Buffer<float> out(n + offset);
    for (size_t i = 0; accumulate && i < n; i++) out[i + offset] = before[i];
    Buffer<u32> examples(rows), positions(rows);
    for (int r = 0; r < rows; r++) {
        examples[r] = u32(random.bits());
        positions[r] = u32(r);
    }
    const uint64_t run_seed = 0x123456789abcdef0ull;
    const u32 step = 77, module = 5;
    DropoutArgs args{};
    args.x = x.get() + offset;
    args.out = out.get() + offset;
    args.example_idx = examples.get();
    args.positions = positions.get();
    args.threshold = u64(double(probability) * 4294967296.0);
    args.key[0] = u32(run_seed) ^ step * 0x9e3779b9u;
    args.key[1] = u32(run_seed >> 32);
    args.module = module;
    args.keep = probability < 1.0f ? 1.0f / (1.0f - probability) : 0.0f;
    args.cols = cols;
    args.accumulate = accumulate;
    dropout(Dim3{unsigned(rows), unsigned(cols + 1023) / 1024}, Dim3{256}, 0, &args, seed);
    size_t num_left_out = 0;
    for (size_t i = 0; i < n; i++) {
        const u32 r = u32(i / cols);
        const double u = word(u32(i % cols), positions[r], examples[r], module, run_seed, step) / 4294967296.0;
        const bool is_left_out = u < double(probability);
        num_left_out += is_left_out;
        const double value = is_left_out ? 0.0 : x[i + offset] / (1.0 - double(probability));
        check("dropout", i, args.out[i], value + (accumulate ? before[i] : 0.0), accumulate || value != 0.0 ? 1e-6 : 0.0);
    }
    const double share = double(num_left_out) / double(n);
    if (n > 4000 && std::fabs(share - probability) > 0.05) fail("dropout leaves out " + std::to_string(share));
    if (offset && !std::isnan(out[0])) fail("dropout writes before its output");
}

int main() {
    known_answers();
    for_orders([](unsigned seed) {
        for (int cols : {1, 6, 64, 1027, 2048}) {
            for (float probability : {0.0f, 0.05f, 0.5f, 1.0f}) {
                run(3, cols, probability, false, 0, seed);
                run(2, cols, probability, true, 1, seed);
            }
        }
    });
}
