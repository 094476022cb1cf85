// Cross-entropy of rows of logits, which become the gradient of the weighted sum of losses:
//     losses[i] = -log softmax(logits[i])[targets[i]]
//     logits[i] = weights[i] (softmax(logits[i]) - onehot(targets[i]))
// A row is read twice and written once: maximum and denominator come from one reading (Milakov & Gimelshein, arXiv
// 1805.02867). Launch: grid (rows), block 1024: as one reads a few hundred rows at a time, large blocks fill the GPU.
#include "../lib/kernel.cuh"

struct CrossEntropyArgs {
    float* logits;         // [rows, vocab]
    const u32* targets;    // [rows], each below vocab
    const float* weights;  // [rows]
    float* losses;         // [rows], written
    int vocab;
};

#define THREADS 1024
// What sums begin with in the place of -inf: the difference of two is never NaN.
#define LOWEST_F32 bits_to_f32(0xff7fffffu)

// Σ exp(x - max) so far.
struct Softmax {
    float max;
    float sum;
};

// Each thread's part of a row.
DEVICE Softmax read_part(const float* logits, int vocab) {
    Softmax softmax{LOWEST_F32, 0.0f};
    for (int i = 4 * int(threadIdx.x); i < vocab; i += 4 * THREADS) {
        float v[4];
        load_up_to4(v, logits + i, vocab - i);
        float max = softmax.max;
        for (int j = 0; j < 4; j++) max = i + j < vocab && v[j] > max ? v[j] : max;
        float sum = softmax.sum * expf(softmax.max - max);
        for (int j = 0; j < 4; j++) sum += i + j < vocab ? expf(v[j] - max) : 0.0f;
        softmax = Softmax{max, sum};
    }
    return softmax;
}

KERNEL(cross_entropy, CrossEntropyArgs, THREADS) {
    SHARED(BlockReduction, room);
    float* logits = args.logits + u64(blockIdx.x) * args.vocab;
    const int target = int(args.targets[blockIdx.x]);
    const float weight = args.weights[blockIdx.x];
    // Read before the reductions, whose barriers separate it from the row's overwriting.
    const float at_target = logits[target];
    const Softmax part = read_part(logits, args.vocab);
    const float max = block_max(part.max, room);
    const float sum = block_sum(part.sum * expf(part.max - max), room);
    if (threadIdx.x == 0) args.losses[blockIdx.x] = logf(sum) + max - at_target;
    const float factor = weight / sum;
    for (int i = 4 * int(threadIdx.x); i < args.vocab; i += 4 * THREADS) {
        float v[4];
        load_up_to4(v, logits + i, args.vocab - i);
        for (int j = 0; j < 4; j++) v[j] = expf(v[j] - max) * factor - (i + j == target ? weight : 0.0f);
        store_up_to4(logits + i, v, args.vocab - i);
    }
}
