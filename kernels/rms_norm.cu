// out = x / sqrt(mean(x²) + eps) * weight for each row (Zhang & Sennrich, arXiv 1910.07467). One block a row.
#include "lib/kernel.cuh"

struct RmsNormArgs {
    const float* x;       // [rows, cols]
    const float* weight;  // [cols]
    void* out;            // [rows, cols] of out_type
    int cols;
    int out_type;
    float eps;
};

#define THREADS 256

KERNEL(rms_norm, RmsNormArgs, THREADS) {
    SHARED(BlockReduction, room);
    const u64 row = u64(blockIdx.x) * args.cols;
    const float* x = args.x + row;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < args.cols; i += THREADS) sum += x[i] * x[i];
    sum = block_sum(sum, room);
    float factor = rsqrtf(sum / float(args.cols) + args.eps);
    for (int i = threadIdx.x; i < args.cols; i += THREADS) {
        store_element(args.out, row + i, x[i] * factor * args.weight[i], args.out_type);
    }
}
