// The gradient of out = x f w, f = 1 / sqrt(mean(x²) + eps) (Zhang & Sennrich, arXiv 1910.07467), is added to d_x:
//     d_x += f w d_out - f³ / cols x Σ w d_out x
// Launch: grid (rows), block 256. One block a row; the second reading of a row comes from the caches.
#include "../lib/kernel.cuh"

struct RmsNormBackwardArgs {
    const float* x;       // [rows, cols]
    const float* weight;  // [cols]
    const float* d_out;   // [rows, cols]
    float* d_x;           // [rows, cols], added to
    int cols;
    float eps;
};

#define THREADS 256

KERNEL(rms_norm_backward, RmsNormBackwardArgs, THREADS) {
    SHARED(BlockReduction, room);
    const u64 row = u64(blockIdx.x) * args.cols;
    const float* x = args.x + row;
    const float* d_out = args.d_out + row;
    float* d_x = args.d_x + row;
    float squares = 0.0f, products = 0.0f;
    for (int i = 4 * int(threadIdx.x); i < args.cols; i += 4 * THREADS) {
        float v[4], w[4], d[4];
        load_up_to4(v, x + i, args.cols - i);
        load_up_to4(w, args.weight + i, args.cols - i);
        load_up_to4(d, d_out + i, args.cols - i);
        for (int j = 0; j < 4; j++) {
            squares += v[j] * v[j];
            products += w[j] * d[j] * v[j];
        }
    }
    squares = block_sum(squares, room);
    products = block_sum(products, room);
    const float factor = rsqrtf(squares / float(args.cols) + args.eps);
    const float back = -factor * factor * factor / float(args.cols) * products;
    for (int i = 4 * int(threadIdx.x); i < args.cols; i += 4 * THREADS) {
        float v[4], w[4], d[4], sum[4];
        load_up_to4(v, x + i, args.cols - i);
        load_up_to4(w, args.weight + i, args.cols - i);
        load_up_to4(d, d_out + i, args.cols - i);
        load_up_to4(sum, d_x + i, args.cols - i);
        for (int j = 0; j < 4; j++) sum[j] += w[j] * d[j] * factor + v[j] * back;
        store_up_to4(d_x + i, sum, args.cols - i);
    }
}
