// Paged causal attention for every head size up to 512 and every cache type, in F32 throughout: for what attention_decode and
// attention_prefill do not take (odd head sizes, F32 caches). Online softmax: Milakov & Gimelshein, arXiv 1805.02867.
//
// A block computes a row of one query head. Each of its 4 warps takes 4 slots of every cache block, a head's dimensions
// spread over its lanes, and sums up what it sees; the warps' results are merged in ascending order. The order of additions
// depends on position and window alone. Keys and values are read anew for every row and head: reasonable for decoding, slow
// for long prompts.
//
// Launch: attention_any_{f32,bf16,f16}, by cache type: grid (rows, heads), block 128, no dynamic shared memory.
#include "lib/paged.cuh"

#define THREADS 128
#define WARPS (THREADS / WARP_LANES)
#define WARP_SLOTS (BLOCK_TOKENS / WARPS)
#define MAX_HEAD_DIM 512
#define LANE_DIMS (MAX_HEAD_DIM / WARP_LANES)

struct WarpResults {
    float out[WARPS][MAX_HEAD_DIM];
    float max[WARPS];
    float sum[WARPS];
};

// Calls f(i, dim) for this lane's dimensions.
template <class F>
DEVICE void for_dims(int head_dim, F f) {
#pragma unroll
    for (int i = 0; i < LANE_DIMS; i++) {
        if (i * WARP_LANES >= head_dim) break;
        int dim = i * WARP_LANES + lane_idx();
        if (dim < head_dim) f(i, dim);
    }
}

// A warp's softmax and weighted sum so far.
struct Running {
    float out[LANE_DIMS];
    float max;
    float sum;
};

// Takes in the warp's slots of a cache block, those in [first, end), which are one at least of the block; `k` and `v` are a
// head's vectors of the block. In the place of other slots the nearest of these is read, so that loads need no branches.
template <class T>
DEVICE void attend(Running& running, const float (&q)[LANE_DIMS], const T* k, const T* v, const AttentionArgs& args, int first,
                   int end) {
    const int head_dim = args.head_dim;
    int offset[WARP_SLOTS];
    bool is_visible[WARP_SLOTS];
    float weights[WARP_SLOTS] = {}, max = running.max;
#pragma unroll
    for (int s = 0; s < WARP_SLOTS; s++) {
        int slot = warp_idx() * WARP_SLOTS + s;
        is_visible[s] = slot >= first && slot < end;
        offset[s] = min(slot < first ? first : slot, end - 1) * head_dim;
    }
    for_dims(head_dim, [&](int i, int dim) {
#pragma unroll
        for (int s = 0; s < WARP_SLOTS; s++) weights[s] += q[i] * to_f32(k[offset[s] + dim]);
    });
#pragma unroll
    for (int s = 0; s < WARP_SLOTS; s++) {
        float score = warp_sum(weights[s]);
        if (args.softcap > 0.0f) score = bounded_score(score, args.softcap);
        weights[s] = is_visible[s] ? score : -INFINITY_F32;
        max = fmaxf(max, weights[s]);
    }
    float reference = softmax_reference(max), factor = exp2_fast(running.max - reference);
    running.max = max;
    running.sum *= factor;
#pragma unroll
    for (int s = 0; s < WARP_SLOTS; s++) {
        weights[s] = exp2_fast(weights[s] - reference);
        running.sum += weights[s];
    }
    for_dims(head_dim, [&](int i, int dim) {
        float out = running.out[i] * factor;
#pragma unroll
        for (int s = 0; s < WARP_SLOTS; s++) out += weights[s] * to_f32(v[offset[s] + dim]);
        running.out[i] = out;
    });
}

// Merges the warps' results and writes them.
DEVICE void merge_warps(const AttentionArgs& args, const WarpResults& results) {
    const u64 at = u64(blockIdx.x) * args.heads + blockIdx.y;
    float max = -INFINITY_F32, sum = 0.0f, weights[WARPS];
    for (int warp = 0; warp < WARPS; warp++) max = fmaxf(max, results.max[warp]);
    for (int warp = 0; warp < WARPS; warp++) {
        weights[warp] = exp2_fast(results.max[warp] - max);
        sum += weights[warp] * results.sum[warp];
    }
    for (int dim = threadIdx.x; dim < args.head_dim; dim += THREADS) {
        float out = 0.0f;
        for (int warp = 0; warp < WARPS; warp++) out += weights[warp] * results.out[warp][dim];
        store_element(args.out, at * args.head_dim + dim, out / sum, args.out_type);
    }
    if (threadIdx.x == 0 && args.lse) args.lse[at] = max * LN_2 + logf(sum);
}

template <class T>
DEVICE void attention(const AttentionArgs& args) {
    SHARED(WarpResults, results);
    const int seq = sequence_of_row(args.seq_starts, args.num_seqs, blockIdx.x);
    if (int(args.seq_starts[seq + 1] - args.seq_starts[seq]) < args.min_rows) return;
    const int position = int(args.positions[blockIdx.x]), first = first_visible(position, args.window);
    const int kv_head = int(blockIdx.y) / (args.heads / args.kv_heads), last_block = position / BLOCK_TOKENS;
    const u32* table = args.block_tables + u64(seq) * args.max_blocks;

    float q[LANE_DIMS] = {};
    const float* query = args.q + (u64(blockIdx.x) * args.heads + blockIdx.y) * args.head_dim;
    for_dims(args.head_dim, [&](int i, int dim) { q[i] = query[dim] * args.scale * LOG2_E; });
    Running running{};
    running.max = -INFINITY_F32;
    u32 next = table[first / BLOCK_TOKENS];
    for (int block = first / BLOCK_TOKENS; block <= last_block; block++) {
        u64 vectors = cache_offset(next, kv_head, args.kv_heads, args.head_dim);
        if (block < last_block) next = table[block + 1];
        const T* k = static_cast<const T*>(args.k_cache) + vectors;
        const T* v = static_cast<const T*>(args.v_cache) + vectors;
        attend(running, q, k, v, args, first - block * BLOCK_TOKENS, position + 1 - block * BLOCK_TOKENS);
    }
    for_dims(args.head_dim, [&](int i, int dim) { results.out[warp_idx()][dim] = running.out[i]; });
    if (lane_idx() == 0) {
        results.max[warp_idx()] = running.max;
        results.sum[warp_idx()] = running.sum;
    }
    __syncthreads();
    merge_warps(args, results);
}

KERNEL(attention_any_f32, AttentionArgs, THREADS) { attention<float>(args); }
KERNEL(attention_any_bf16, AttentionArgs, THREADS) { attention<bf16>(args); }
KERNEL(attention_any_f16, AttentionArgs, THREADS) { attention<f16>(args); }
