// out = (x - mean) / sqrt(variance + eps) * weight + bias for each row (Ba et al., arXiv 1607.06450). One block a row; the variance is
// that of the differences from the mean, so that rows far from zero lose nothing.
//
// Entry point: layer_norm. Launch: grid (rows), block 256.
#include "lib/kernel.cuh"

struct LayerNormArgs {
    const float* x;       // [rows, cols]
    const float* weight;  // [cols]
    const float* bias;    // [cols]
    void* out;            // [rows, cols] of out_type
    int cols;
    int out_type;
    float eps;
};

#define THREADS 256

KERNEL(layer_norm, LayerNormArgs, THREADS) {
    SHARED(BlockReduction, room);
    const u64 row = u64(blockIdx.x) * args.cols;
    const float* x = args.x + row;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < args.cols; i += THREADS) sum += x[i];
    const float mean = block_sum(sum, room) / float(args.cols);
    float squares = 0.0f;
    for (int i = threadIdx.x; i < args.cols; i += THREADS) squares += (x[i] - mean) * (x[i] - mean);
    const float factor = rsqrtf(block_sum(squares, room) / float(args.cols) + args.eps);
    for (int i = threadIdx.x; i < args.cols; i += THREADS) {
        store_element(args.out, row + i, (x[i] - mean) * factor * args.weight[i] + args.bias[i], args.out_type);
    }
}
