// Paged causal attention of sequences that have at least min_rows rows in the step (FlashAttention-2: Dao, arXiv 2307.08691).
// A sequence's rows are its last tokens; keys and values of all its tokens, these included, are in the cache.
//
// The query vectors of a sequence and kv head are numbered row by row, the heads of a group side by side; a block computes
// 128 of them. So a tile of keys and values is shared by all heads of a group, and short chunks fill a tile better than they
// would head by head. Each of 4 warps has 32 query vectors: a fragment of keys or values read from shared memory then serves
// two mma.sync, as shared memory would otherwise limit the tensor cores (a warp reads a tile of 64 positions whole, 128 bytes
// a cycle and multiprocessor). With 128 vectors a block, tiles take 1/128 byte a FLOP from the L2 cache: an H100 has that.
//
// Keys and values come in tiles of 64 positions, 16 by each warp, through a ring of three buffers: keys, values, keys of the
// next tile ... A copy is on its way for a whole tile's time, at the cost of two barriers a tile. 81920 bytes let two blocks
// share an A100's multiprocessor. A tile that no row of a warp sees is skipped by the warp; tiles that no row of the block
// sees are not read. Blocks with the longest contexts start first, so that the last to end are short.
//
// q * scale * log2 e and the weights are rounded to the cache's type, as tensor cores ask; sums are f32. So f16 takes queries
// up to 65504 / (scale * log2 e). The order of additions depends on position, window and row number alone.
//
// Launch: attention_prefill_{bf16,f16}_{64,96,128}, by cache type and head size:
//   grid (kv_heads, ceil(rows * (heads / kv_heads) / 128) + num_seqs), block 128,
//   dynamic shared memory 40960 bytes for 64, 66560 for 96, 81920 for 128.
// `rows` are those of the step, or fewer if the caller knows how many belong to sequences that are left out. Surplus blocks
// end at once. The second extent of a grid may be 65535 at most: 2 million rows at a group of 4.
#include "lib/paged.cuh"

#define THREADS 128
#define WARPS (THREADS / WARP_LANES)
#define TILE_ROWS 128   // query vectors of a block
#define WARP_ROWS 32    // and of a warp: two fragments of 16
#define TILE_TOKENS 64  // a cache block for each warp to copy
#define RING 3

// A block's queries, keys and values; in the end its results.
template <class T, int HEAD_DIM>
struct Memory {
    static constexpr int OUT_STRIDE = HEAD_DIM + 8;  // so that no 16 lanes of a store meet in a bank
    union {
        struct {
            T q[TILE_ROWS * Rows<HEAD_DIM>::STRIDE];
            T ring[RING][TILE_TOKENS * Rows<HEAD_DIM>::STRIDE];
        };
        float out[TILE_ROWS * OUT_STRIDE];
    };
};
static_assert(sizeof(Memory<bf16, 64>) == 40960, "as the head of this file says");
static_assert(sizeof(Memory<bf16, 96>) == 66560, "as the head of this file says");
static_assert(sizeof(Memory<bf16, 128>) == 81920, "as the head of this file says");

// What a block computes: query vectors [first, first + TILE_ROWS) of those of a sequence and kv head.
struct Work {
    int seq;
    int kv_head;
    int group;     // heads of a kv head
    int first;     // query vector
    int vectors;   // of the sequence and kv head
    u32 row;       // the sequence's first
    int position;  // of that row
};

// Query vector i's row and head, as an offset in [rows, heads], and its position.
DEVICE u64 query_vector(const AttentionArgs& args, const Work& work, int i) {
    return (u64(work.row) + i / work.group) * args.heads + work.kv_head * work.group + i % work.group;
}
DEVICE int position_of(const Work& work, int i) { return work.position + min(i, work.vectors - 1) / work.group; }

// Finds the block's work: 32 sequences at a time, the tiles of each counted from the end. False if there is none left.
DEVICE bool find_work(const AttentionArgs& args, Work& work) {
    work.kv_head = int(blockIdx.x);
    work.group = args.heads / args.kv_heads;
    int wanted = int(blockIdx.y);
    for (int first_seq = 0; first_seq < args.num_seqs; first_seq += WARP_LANES) {
        int seq = first_seq + lane_idx();
        int rows = seq < args.num_seqs ? int(args.seq_starts[seq + 1] - args.seq_starts[seq]) : 0;
        int tiles = rows >= args.min_rows ? ceil_div(rows * work.group, TILE_ROWS) : 0;
        int through = tiles;  // tiles of this and earlier sequences
        for (int offset = 1; offset < WARP_LANES; offset *= 2) {
            int earlier = __shfl_up_sync(FULL_WARP, through, offset);
            if (lane_idx() >= offset) through += earlier;
        }
        u32 reached = __ballot_sync(FULL_WARP, through > wanted);
        if (reached == 0) {
            wanted -= __shfl_sync(FULL_WARP, through, WARP_LANES - 1);
            continue;
        }
        int lane = __ffs(int(reached)) - 1;
        work.seq = first_seq + lane;
        work.first = (__shfl_sync(FULL_WARP, through, lane) - 1 - wanted) * TILE_ROWS;
        work.vectors = __shfl_sync(FULL_WARP, rows, lane) * work.group;
        work.row = args.seq_starts[work.seq];
        work.position = int(args.positions[work.row]);
        return true;
    }
    return false;
}

// Scaled queries of the block in the cache's type; zeros past the last.
template <class T, int HEAD_DIM>
DEVICE void load_queries(Memory<T, HEAD_DIM>& memory, const AttentionArgs& args, const Work& work) {
    using Layout = Rows<HEAD_DIM>;
    const float factor = args.scale * LOG2_E;
#pragma unroll 4
    for (int i = threadIdx.x; i < TILE_ROWS * Layout::CHUNKS; i += THREADS) {
        int row = i / Layout::CHUNKS, chunk = i % Layout::CHUNKS;
        Packed<T> scaled{};
        if (work.first + row < work.vectors) {
            const float* from = args.q + query_vector(args, work, work.first + row) * HEAD_DIM + chunk * 8;
            Packed<float> halves[2] = {load16(from), load16(from + 4)};
            for (int j = 0; j < 8; j++) scaled.at[j] = from_f32<T>(halves[j / 4].at[j % 4] * factor);
        }
        store16(memory.q + Layout::at(row, chunk), scaled);
    }
}

// A warp's results so far. Row r of fragment f, with r = lane / 4 + 8 * half: its sums in out[f][...][2 * half] and the next.
template <int HEAD_DIM>
struct Running {
    float out[2][HEAD_DIM / 8][4];
    float reference[2][2];  // what is subtracted from scores: -infinity before any was visible
    float sum[2][2];        // of this lane's weights alone
};

// Scores of the warp's 32 query vectors with 64 keys, 8 keys a fragment.
typedef float Scores[2][TILE_TOKENS / 8][4];
template <class T, int HEAD_DIM>
DEVICE void multiply_keys(Scores& scores, const T* queries, const T* keys) {
#pragma unroll
    for (int step = 0; step < HEAD_DIM / 16; step++) {
        u32 q[2][4];
#pragma unroll
        for (int f = 0; f < 2; f++) {
            ldmatrix_x4(q[f], queries + Rows<HEAD_DIM>::at(f * 16 + lane_idx() % 16, 2 * step + lane_idx() / 16));
        }
#pragma unroll
        for (int n = 0; n < TILE_TOKENS / 16; n++) {
            u32 k[2][2];
            load_keys<HEAD_DIM>(k, keys, n * 16, step);
#pragma unroll
            for (int i = 0; i < 4; i++) mma_m16n8k16(scores[i / 2][2 * n + i % 2], q[i / 2], k[i % 2], T{});
        }
    }
}

// Bounds the scores.
DEVICE void bound(Scores& scores, float softcap) {
#pragma unroll
    for (int f = 0; f < 2; f++) {
#pragma unroll
        for (int n = 0; n < TILE_TOKENS / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) scores[f][n][i] = bounded_score(scores[f][n][i], softcap);
        }
    }
}

// Leaves out the positions that a row does not see; the tile's first is `first`. Few tiles need it, so that the rows'
// positions are not kept in registers.
DEVICE void mask(Scores& scores, const Work& work, int first, int window) {
#pragma unroll
    for (int f = 0; f < 2; f++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int position = position_of(work, work.first + warp_idx() * WARP_ROWS + f * 16 + half * 8 + lane_idx() / 4);
            int last = position - first, begin = first_visible(position, window) - first;
#pragma unroll
            for (int n = 0; n < TILE_TOKENS / 8; n++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    int token = n * 8 + lane_idx() % 4 * 2 + i;
                    if (token > last || token < begin) scores[f][n][2 * half + i] = -INFINITY_F32;
                }
            }
        }
    }
}

// Turns scores into weights, exp2(score - reference). The reference moves to the maximum only when that is larger by more than
// SLACK: weights stay below 2^SLACK, which loses nothing, and sums seldom need to be multiplied. A row's result is that of the
// row alone, as what its neighbours need is a factor of 1 to it.
#define SLACK 8.0f
template <int HEAD_DIM>
DEVICE void update_softmax(Scores& scores, Running<HEAD_DIM>& running) {
    float factor[2][2];
    bool any_moves = false;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int f = i / 2, at = i % 2 * 2;
        float& reference = running.reference[f][i % 2];
        float max = scores[f][0][at], sum = 0.0f;
#pragma unroll
        for (int n = 0; n < TILE_TOKENS / 8; n++) max = fmaxf(max, fmaxf(scores[f][n][at], scores[f][n][at + 1]));
        max = quad_max(max);
        bool moves = max > reference + SLACK;
        factor[f][i % 2] = moves ? exp2_fast(reference - max) : 1.0f;
        reference = moves ? max : reference;
        any_moves |= moves;
        const float subtracted = softmax_reference(reference);
#pragma unroll
        for (int n = 0; n < TILE_TOKENS / 8; n++) {
            scores[f][n][at] = exp2_fast(scores[f][n][at] - subtracted);
            scores[f][n][at + 1] = exp2_fast(scores[f][n][at + 1] - subtracted);
            sum += scores[f][n][at] + scores[f][n][at + 1];
        }
        running.sum[f][i % 2] = running.sum[f][i % 2] * factor[f][i % 2] + sum;
    }
    if (!__any_sync(FULL_WARP, any_moves)) return;
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 8; n++) {
#pragma unroll
        for (int i = 0; i < 8; i++) running.out[i / 4][n][i % 4] *= factor[i / 4][i % 4 / 2];
    }
}

// Adds the values times their weights. The fragments that scores were computed in are those that mma.sync reads weights from.
template <class T, int HEAD_DIM>
DEVICE void add_values(Running<HEAD_DIM>& running, const Scores& weights, const T* values) {
#pragma unroll
    for (int k = 0; k < TILE_TOKENS / 16; k++) {
        u32 w[2][4];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float(&of)[4] = weights[i / 4][2 * k + i % 4 / 2];
            w[i / 4][i % 4] = pack2<T>(of[i % 2 * 2], of[i % 2 * 2 + 1]);
        }
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 16; n++) {
            u32 v[2][2];
            load_values<HEAD_DIM>(v, values, k * 16, n);
#pragma unroll
            for (int i = 0; i < 4; i++) mma_m16n8k16(running.out[i / 2][2 * n + i % 2], w[i / 2], v[i % 2], T{});
        }
    }
}

// All tiles of keys and values that any row of the block sees.
template <class T, int HEAD_DIM>
DEVICE void attend_tiles(Running<HEAD_DIM>& running, Memory<T, HEAD_DIM>& memory, const AttentionArgs& args, const Work& work) {
    const int begin = first_visible(position_of(work, work.first), args.window);
    const int end = position_of(work, work.first + TILE_ROWS - 1) + 1;
    const int first_block = begin / BLOCK_TOKENS, blocks = ceil_div(end, BLOCK_TOKENS) - first_block;
    const int tiles = ceil_div(blocks, WARPS);
    // Of positions, [warp_begin, warp_end) are seen by some row of this warp, [first_of_all, last_of_all] by all.
    const int warp_first = work.first + warp_idx() * WARP_ROWS;
    const bool has_rows = warp_first < work.vectors;
    const int last_of_all = position_of(work, warp_first), warp_end = position_of(work, warp_first + WARP_ROWS - 1) + 1;
    const int warp_begin = first_visible(last_of_all, args.window), first_of_all = first_visible(warp_end - 1, args.window);

    BlockIds ids = block_ids(args.block_tables + u64(work.seq) * args.max_blocks + first_block + warp_idx(), WARPS,
                             (blocks - warp_idx() + WARPS - 1) / WARPS);
    u64 vectors = 0;  // where the warp's part of the tile to be fetched lies
    // Copy 2 t is the keys of tile t, copy 2 t + 1 its values. Groups are counted: each has one, even if it is empty.
    auto fetch = [&](int copy) {
        int tile = copy / 2, first = (first_block + tile * WARPS + warp_idx()) * BLOCK_TOKENS;
        if (tile < tiles) {
            if (copy % 2 == 0) vectors = cache_offset(next_block_id(ids, tile), work.kv_head, args.kv_heads, HEAD_DIM);
            const T* cache = static_cast<const T*>(copy % 2 == 0 ? args.k_cache : args.v_cache);
            T* rows = memory.ring[copy % RING] + warp_idx() * BLOCK_TOKENS * Rows<HEAD_DIM>::STRIDE;
            copy_cache_block<HEAD_DIM>(rows, cache + vectors, begin - first, end - first);
        }
        cp_async_commit();
    };
    fetch(0);
    fetch(1);
    load_queries(memory, args, work);
    const T* queries = memory.q + warp_idx() * WARP_ROWS * Rows<HEAD_DIM>::STRIDE;
    for (int tile = 0; tile < tiles; tile++) {
        const int first = (first_block + tile * WARPS) * BLOCK_TOKENS, last = first + TILE_TOKENS - 1;
        const bool is_seen = has_rows && first < warp_end && last >= warp_begin;
        Scores scores = {};
        cp_async_wait<1>();
        __syncthreads();  // the keys have arrived, the last tile's values are done with
        fetch(2 * tile + 2);
        if (is_seen) {
            multiply_keys<T, HEAD_DIM>(scores, queries, memory.ring[2 * tile % RING]);
            if (args.softcap > 0.0f) bound(scores, args.softcap);
            if (last > last_of_all || first < first_of_all) mask(scores, work, first, args.window);
            update_softmax(scores, running);
        }
        cp_async_wait<1>();
        __syncthreads();  // the values have arrived, the keys are done with
        fetch(2 * tile + 3);
        if (is_seen) add_values<T, HEAD_DIM>(running, scores, memory.ring[(2 * tile + 1) % RING]);
    }
}

// Writes the warp's results, in whole vectors by way of shared memory.
template <class T, int HEAD_DIM>
DEVICE void write_results(const Running<HEAD_DIM>& running, Memory<T, HEAD_DIM>& memory, const AttentionArgs& args,
                          const Work& work) {
    constexpr int STRIDE = Memory<T, HEAD_DIM>::OUT_STRIDE, PIECES = HEAD_DIM / 4;
    const int first = work.first + warp_idx() * WARP_ROWS;
    float* out = memory.out + warp_idx() * WARP_ROWS * STRIDE;
#pragma unroll
    for (int f = 0; f < 2; f++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = f * 16 + half * 8 + lane_idx() / 4;
            float sum = quad_sum(running.sum[f][half]), factor = 1.0f / sum;
            float* to = out + row * STRIDE + lane_idx() % 4 * 2;
#pragma unroll
            for (int n = 0; n < HEAD_DIM / 8; n++) {
                to[n * 8] = running.out[f][n][2 * half] * factor;
                to[n * 8 + 1] = running.out[f][n][2 * half + 1] * factor;
            }
            if (args.lse && lane_idx() % 4 == 0 && first + row < work.vectors) {
                args.lse[query_vector(args, work, first + row)] = running.reference[f][half] * LN_2 + logf(sum);
            }
        }
    }
    __syncwarp();
#pragma unroll 4
    for (int i = lane_idx(); i < WARP_ROWS * PIECES; i += WARP_LANES) {
        int row = i / PIECES, dim = i % PIECES * 4;
        if (first + row >= work.vectors) break;
        Packed<float> piece = load16(out + row * STRIDE + dim);
        store_elements4(args.out, query_vector(args, work, first + row) * HEAD_DIM + dim, piece.at, args.out_type);
    }
}

template <class T, int HEAD_DIM>
DEVICE void prefill(const AttentionArgs& args) {
    DYNAMIC_SHARED(bytes);
    auto& memory = *reinterpret_cast<Memory<T, HEAD_DIM>*>(bytes);
    Work work;
    if (!find_work(args, work)) return;
    Running<HEAD_DIM> running{};
#pragma unroll
    for (int i = 0; i < 4; i++) running.reference[i / 2][i % 2] = -INFINITY_F32;
    attend_tiles(running, memory, args, work);
    __syncthreads();
    write_results(running, memory, args, work);
}

KERNEL(attention_prefill_bf16_64, AttentionArgs, THREADS) { prefill<bf16, 64>(args); }
KERNEL(attention_prefill_bf16_96, AttentionArgs, THREADS) { prefill<bf16, 96>(args); }
KERNEL(attention_prefill_bf16_128, AttentionArgs, THREADS) { prefill<bf16, 128>(args); }
KERNEL(attention_prefill_f16_64, AttentionArgs, THREADS) { prefill<f16, 64>(args); }
KERNEL(attention_prefill_f16_96, AttentionArgs, THREADS) { prefill<f16, 96>(args); }
KERNEL(attention_prefill_f16_128, AttentionArgs, THREADS) { prefill<f16, 128>(args); }
