// The gradient of out = y w + b, y = (x - mean) f, f = 1 / sqrt(variance + eps) (Ba et al., arXiv 1607.06450), is added to d_x: with
// g = w d_out,
//     d_x += f (g - mean(g) - y mean(g y))
// Launch: grid (rows), block 256. One block a row; later readings of a row come from the caches.
#include "../lib/kernel.cuh"

struct LayerNormBackwardArgs {
    const float* x;       // [rows, cols]
    const float* weight;  // [cols]
    const float* d_out;   // [rows, cols]
    float* d_x;           // [rows, cols], added to
    int cols;
    float eps;
};

#define THREADS 256

KERNEL(layer_norm_backward, LayerNormBackwardArgs, THREADS) {
    SHARED(BlockReduction, room);
    const u64 row = u64(blockIdx.x) * args.cols;
    const float* x = args.x + row;
    const float* d_out = args.d_out + row;
    float* d_x = args.d_x + row;
    const float cols = float(args.cols);
    float sum = 0.0f;
    for (int i = threadIdx.x; i < args.cols; i += THREADS) sum += x[i];
    const float mean = block_sum(sum, room) / cols;
    float squares = 0.0f, gradients = 0.0f, products = 0.0f;
    for (int i = threadIdx.x; i < args.cols; i += THREADS) {
        const float centred = x[i] - mean, g = args.weight[i] * d_out[i];
        squares += centred * centred;
        gradients += g;
        products += g * centred;
    }
    squares = block_sum(squares, room);
    gradients = block_sum(gradients, room) / cols;
    const float factor = rsqrtf(squares / cols + args.eps);
    products = block_sum(products, room) * factor / cols;
    for (int i = threadIdx.x; i < args.cols; i += THREADS) {
        const float y = (x[i] - mean) * factor, g = args.weight[i] * d_out[i];
        d_x[i] += factor * (g - gradients - y * products);
    }
}
