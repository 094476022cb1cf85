// Gradients of what mixtures of experts have besides their layers: routing (experts.cu) and the weighted sum.
//
// Entry points, all without dynamic shared memory:
//   route_backward    d_logits[e] = w_e (d_w_e - sum of w d_w over the row's experts), 0 for the others. Grid ceil(rows / 8), block 256.
//   combine_backward  d_x[place] = w d_out[row], and d_w = x[place] . d_out[row]. Grid pairs, block 256.
#include "../lib/kernel.cuh"

struct RouteBackwardArgs {
    const float* weights;    // [rows, top_k]
    const u32* experts;      // [rows, top_k]
    const float* d_weights;  // [rows, top_k]
    float* d_logits;         // [rows, num_experts]
    int rows;
    int num_experts;
    int top_k;
    int unused;
};

struct CombineBackwardArgs {
    const float* x;        // [pairs, n]
    const u32* places;     // [rows, top_k]
    const float* weights;  // [rows, top_k]
    const float* d_out;    // [rows, n]
    float* d_x;            // [pairs, n]
    float* d_weights;      // [rows, top_k]
    int n;
    int top_k;
};

KERNEL(route_backward, RouteBackwardArgs, 256) {
    const int row = int(blockIdx.x) * 8 + warp_idx(), lane = lane_idx();
    if (row >= args.rows) return;
    const u64 at = u64(u32(row)) * u32(args.top_k);
    float mean = 0.0f;
    for (int j = lane; j < args.top_k; j += WARP_LANES) mean += args.weights[at + j] * args.d_weights[at + j];
    mean = warp_sum(mean);
    // Each lane looks whether its expert was taken.
    for (int expert = lane; expert < args.num_experts; expert += WARP_LANES) {
        float d = 0.0f;
        for (int j = 0; j < args.top_k; j++) {
            if (args.experts[at + j] == u32(expert)) d = args.weights[at + j] * (args.d_weights[at + j] - mean);
        }
        args.d_logits[u64(u32(row)) * u32(args.num_experts) + u32(expert)] = d;
    }
}

KERNEL(combine_backward, CombineBackwardArgs, 256) {
    SHARED(BlockReduction, room);
    const u32 pair = blockIdx.x, row = pair / u32(args.top_k), n = u32(args.n);
    const float weight = args.weights[pair];
    const float* d_out = args.d_out + u64(row) * n;
    const u64 place = u64(args.places[pair]) * n;
    float dot = 0.0f;
    for (u32 i = threadIdx.x; i < n; i += 256) {
        const float d = d_out[i];
        dot += args.x[place + i] * d;
        args.d_x[place + i] = weight * d;
    }
    dot = block_sum(dot, room);
    if (threadIdx.x == 0) args.d_weights[pair] = dot;
}
