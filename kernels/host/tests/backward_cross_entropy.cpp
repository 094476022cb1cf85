#include "../../backward/cross_entropy.cu"

#include "check.hpp"

// `offset`: logits may begin at any float. `shift`: added to all logits, which changes nothing but their rounding.
void run(int rows, int vocab, int offset, float shift, unsigned seed) {
    Random random(uint64_t(rows * 1000 + vocab));
    Buffer<float> logits(size_t(rows) * vocab + offset), losses(rows);
    Buffer<float> before(size_t(rows) * vocab);
    for (size_t i = 0; i < before.size(); i++) logits[i + offset] = before[i] = random.range(-8.0f, 8.0f) + shift;
    auto weights = random_floats<float>(random, rows, 2.0f);
    Buffer<u32> targets(rows);
    for (int r = 0; r < rows; r++) targets[r] = u32(r == 0 ? vocab - 1 : random.below(vocab));
    CrossEntropyArgs args{logits.get() + offset, targets.get(), weights.get(), losses.get(), vocab};
    cross_entropy(Dim3{unsigned(rows)}, Dim3{1024}, 0, &args, seed);
    for (int r = 0; r < rows; r++) {
        const float* row = before.get() + size_t(r) * vocab;
        double sum = 0.0;
        for (int i = 0; i < vocab; i++) sum += std::exp(double(row[i]) - shift);
        const double want = std::log(sum) + shift - row[targets[r]];
        check("loss", r, losses[r], want, 1e-6 * (std::fabs(want) + std::fabs(shift) + 8.0));
        for (int i = 0; i < vocab; i++) {
            const double share = std::exp(double(row[i]) - shift) / sum, onehot = u32(i) == targets[r];
            const double bound = std::fabs(weights[r]) * (2e-6 * share + 1e-7 * onehot);
            check("gradient", size_t(i), args.logits[size_t(r) * vocab + i], weights[r] * (share - onehot), bound);
        }
    }
    if (offset && !std::isnan(logits[0])) fail("cross_entropy writes before its operand");
}

// Logits that were masked, and one that outweighs all others.
void extremes(unsigned seed) {
    const int vocab = 5000;
    Buffer<float> logits(vocab, -INFINITY), weights(1, 0.5f), losses(1);
    logits[4999] = 1e4f;
    logits[17] = 1e4f;
    Buffer<u32> targets(1, 17);
    CrossEntropyArgs args{logits.get(), targets.get(), weights.get(), losses.get(), vocab};
    cross_entropy(Dim3{1}, Dim3{1024}, 0, &args, seed);
    check("loss of two", 0, losses[0], std::log(2.0), 2e-3);
    for (int i = 0; i < vocab; i++) {
        const double want = i == 17 ? -0.25 : i == 4999 ? 0.25 : 0.0;
        check("gradient of two", size_t(i), logits[i], want, 1e-7);
    }
}

int main() {
    for_orders([](unsigned seed) {
        for (int vocab : {1, 3, 97, 1024, 4099, 9000}) {
            run(1, vocab, 0, 0.0f, seed);
            run(3, vocab, 1, 100.0f, seed);
        }
        extremes(seed);
    });
}
