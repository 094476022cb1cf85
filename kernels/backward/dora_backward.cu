// The gradient of DoRA's magnitudes, the norm below them taken as a constant (Liu et al., arXiv 2402.09353, section 4.3), and
// of what they scale:
//     scaled[row, o] = d_out[row, o] out_scale[o]
//     d_magnitude[o] += Σ_row d_out[row, o] (out[row, o] - bias[o] - residual[row, o]) / magnitude[o]; nothing if that is 0
// Launch, one after the other, with parts = ceil(rows / rows_per_part):
//     dora_backward_parts: grid (ceil(cols / 32), parts), block 256
//     dora_backward_sum: grid (ceil(cols / 256)), block 256
// Sums have one order for given rows_per_part, which should be a function of the shape: 64 gives enough blocks.
#include "../lib/kernel.cuh"

struct DoraBackwardArgs {
    const float* out;        // [rows, cols]
    const float* bias;       // [cols], or null
    const float* residual;   // [rows, cols], or null
    const float* out_scale;  // [cols]
    const float* magnitude;  // [cols]
    const float* d_out;      // [rows, cols]
    float* scaled;           // [rows, cols], written; may be d_out
    float* d_magnitude;      // [cols], added to by the second kernel
    float* parts;            // [parts, cols]: room, written by the first kernel
    int rows, cols;
    int rows_per_part;
};

#define THREADS 256
#define WARPS (THREADS / WARP_LANES)

struct DoraPart {
    float of_warp[WARPS][WARP_LANES];
};

// A lane has a column, a warp every eighth row of the part.
KERNEL(dora_backward_parts, DoraBackwardArgs, THREADS) {
    SHARED(DoraPart, part);
    const int col = int(blockIdx.x) * WARP_LANES + lane_idx();
    const bool exists = col < args.cols;
    const int first = int(blockIdx.y) * args.rows_per_part;
    const int end = min(first + args.rows_per_part, args.rows);
    const float bias = exists && args.bias ? args.bias[col] : 0.0f;
    const float scale = exists ? args.out_scale[col] : 0.0f;
    float sum = 0.0f;
    for (int row = first + warp_idx(); exists && row < end; row += WARPS) {
        const u64 at = u64(row) * args.cols + col;
        const float before = bias + (args.residual ? args.residual[at] : 0.0f);
        const float d = args.d_out[at];
        sum += d * (args.out[at] - before);
        args.scaled[at] = d * scale;
    }
    part.of_warp[warp_idx()][lane_idx()] = sum;
    __syncthreads();
    if (warp_idx() != 0 || !exists) return;
    sum = 0.0f;
    for (int warp = 0; warp < WARPS; warp++) sum += part.of_warp[warp][lane_idx()];
    args.parts[u64(blockIdx.y) * args.cols + col] = sum;
}

KERNEL(dora_backward_sum, DoraBackwardArgs, THREADS) {
    const int col = int(blockIdx.x) * THREADS + int(threadIdx.x);
    if (col >= args.cols || args.magnitude[col] == 0.0f) return;
    float sum = 0.0f;
    for (int part = 0; part < ceil_div(args.rows, args.rows_per_part); part++) sum += args.parts[u64(part) * args.cols + col];
    args.d_magnitude[col] += sum / args.magnitude[col];
}
