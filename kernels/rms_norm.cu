// out = x / sqrt(mean(x²) + eps) * weight + residual for each run (Zhang & Sennrich, arXiv 1910.07467): a row, or a head of one. One
// block a run.
//
// Entry point: rms_norm. Launch: grid (runs), block 256.
#include "lib/kernel.cuh"

struct RmsNormArgs {
    const float* x;         // [runs, cols]
    const float* weight;    // [cols]
    const float* residual;  // [runs, cols], or null
    void* out;              // [runs, cols] of out_type
    int cols;
    int out_type;
    float eps;
};

#define THREADS 256

KERNEL(rms_norm, RmsNormArgs, THREADS) {
    SHARED(BlockReduction, room);
    const u64 run = u64(blockIdx.x) * args.cols;
    const float* x = args.x + run;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < args.cols; i += THREADS) sum += x[i] * x[i];
    sum = block_sum(sum, room);
    float factor = rsqrtf(sum / float(args.cols) + args.eps);
    for (int i = threadIdx.x; i < args.cols; i += THREADS) {
        const float added = args.residual ? args.residual[run + i] : 0.0f;
        store_element(args.out, run + i, x[i] * factor * args.weight[i] + added, args.out_type);
    }
}
