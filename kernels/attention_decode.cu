// Paged attention of sequences that have one row in the step (Flash-Decoding: Dao et al., 2023; online softmax: Milakov &
// Gimelshein, arXiv 1805.02867; rescaled partial results: Dao et al., arXiv 2205.14135). The others are left to
// attention_prefill.
//
// The context is cut into splits at absolute positions. A block computes one split for up to 8 query heads of one kv head, so
// that keys and values leave memory once; groups of more than 8 heads take several blocks, which find them in the L2 cache.
// Each of its 4 warps visits every fourth cache block of the split on its own, without barriers: its copies to shared memory
// run STAGES visits ahead. The warps' results are merged in the end, and the splits' by attention_decode_combine. The order of
// additions depends on the position, the window and the cut alone.
//
// Scores and weighted sums are tensor-core products of 16 rows. A query, scaled, is the sum of two 16-bit floats: rows 0 to 7
// hold the larger parts of 8 heads, rows 8 to 15 what these leave; likewise the weights. A head's two sums lie in one lane.
// So they are rounded to 2^-16 (bf16) or 2^-22 (f16, and 2^-25 absolute) only. f16 takes queries up to
// 65504 / (scale * log2 e).
//
// Why not plain FMAs: an H100 moves 3 TB/s / 132 multiprocessors, about 13 bytes a cycle each, so 8 KiB of keys and values
// (16 positions of 128) take 610 cycles. FMAs alone would fill 128 of them at a group of 4 and 256 at 8, and conversions,
// shuffles and reads of shared memory come on top; 32 mma.sync and 16 ldmatrix are far less, whatever the group. 3 blocks fit
// a multiprocessor, with at least 96 KiB of copies in flight; 3 TB/s at 700 ns of latency wants 16 KiB.
//
// Launch: attention_decode_{bf16,f16}_{64,96,128}, by cache type and head size:
//   grid (num_splits, kv_heads * ceil(heads / kv_heads / 8), num_seqs), block 128,
//   dynamic shared memory 65536 bytes for 64 and 128, 53248 for 96.
// and, unless num_splits is 1, attention_decode_combine: grid (heads, num_seqs), block 128, no dynamic shared memory.
// num_splits * split_tokens has to reach the longest context that the step may have. Splits past a row's context end at once,
// but each costs about a microsecond of a slot on a multiprocessor: prefer a cut that gives two to four times as many blocks
// as run at once (3 a multiprocessor), and splits of 128 tokens at least.
#include "lib/paged.cuh"

#define THREADS 128
#define WARPS (THREADS / WARP_LANES)
#define BLOCK_HEADS 8
#define MAX_HEAD_DIM 128

struct DecodeArgs {
    AttentionArgs attention;  // min_rows is not read
    // Room for the splits' results, which is not touched if num_splits is 1; multiples of 16.
    float* partial_out;      // [num_seqs, heads, num_splits, head_dim]: values weighted by exp2(score - maximum), summed up
    float* partial_softmax;  // [num_seqs, heads, num_splits, 2]: the maximum, of scores times log2 e, and the sum of weights
    int num_splits;
    int split_tokens;  // a multiple of BLOCK_TOKENS
};

// The row of a sequence that has just one, and the positions it sees.
struct DecodeRow {
    u32 row;
    int first;
    int end;
};
DEVICE bool find_row(const AttentionArgs& args, int seq, DecodeRow& found) {
    found.row = args.seq_starts[seq];
    if (args.seq_starts[seq + 1] - found.row != 1) return false;
    int position = int(args.positions[found.row]);
    found.first = first_visible(position, args.window);
    found.end = position + 1;
    return true;
}

// A warp's keys and values of a few cache blocks; in the end its part of the result.
template <class T, int HEAD_DIM>
struct Staging {
    static constexpr int STAGES = 256 / HEAD_DIM;
    static constexpr int OUT_STRIDE = HEAD_DIM + 8;  // so that no 16 lanes of a store meet in a bank
    union {
        struct {
            T k[BLOCK_TOKENS * Rows<HEAD_DIM>::STRIDE];
            T v[BLOCK_TOKENS * Rows<HEAD_DIM>::STRIDE];
        } stage[STAGES];
        float out[BLOCK_HEADS * OUT_STRIDE];
    };
};
static_assert(WARPS * sizeof(Staging<bf16, 64>) == 65536, "as the head of this file says");
static_assert(WARPS * sizeof(Staging<bf16, 96>) == 53248, "as the head of this file says");
static_assert(WARPS * sizeof(Staging<bf16, 128>) == 65536, "as the head of this file says");

// Maximum and sum of weights of each warp and head.
struct WarpSoftmax {
    float max[WARPS][BLOCK_HEADS];
    float sum[WARPS][BLOCK_HEADS];
};

// The two 16-bit floats that add up to a value, of two values at once.
template <class T>
DEVICE void split2(float first, float second, u32& high, u32& low) {
    T high0 = from_f32<T>(first), high1 = from_f32<T>(second);
    high = u32(high0.bits) | u32(high1.bits) << 16;
    low = pack2<T>(first - to_f32(high0), second - to_f32(high1));
}

// Fragments of a block's queries, [heads, HEAD_DIM], times `factor`; zeros for heads there are not.
template <class T, int HEAD_DIM>
DEVICE void load_queries(u32 (&q)[HEAD_DIM / 16][4], const float* from, int heads, float factor) {
    int head = lane_idx() / 4;
#pragma unroll
    for (int step = 0; step < HEAD_DIM / 16; step++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const float* pair = from + head * HEAD_DIM + step * 16 + half * 8 + lane_idx() % 4 * 2;
            float first = head < heads ? pair[0] * factor : 0.0f, second = head < heads ? pair[1] * factor : 0.0f;
            split2<T>(first, second, q[step][2 * half], q[step][2 * half + 1]);
        }
    }
}

// A lane's part of a warp's result: of head lane / 4.
template <int HEAD_DIM>
struct Running {
    float out[HEAD_DIM / 8][4];  // sums with the larger parts of the weights, then those with the smaller
    float max;
    float sum;  // of this lane's weights alone
};

// Takes in one cache block, whose slots [first, end) are visible.
template <class T, int HEAD_DIM>
DEVICE void attend(Running<HEAD_DIM>& running, const u32 (&q)[HEAD_DIM / 16][4], const T* k, const T* v, float softcap, int first,
                   int end) {
    float scores[2][4] = {};
#pragma unroll
    for (int step = 0; step < HEAD_DIM / 16; step++) {
        u32 keys[2][2];
        load_keys<HEAD_DIM>(keys, k, 0, step);
        mma_m16n8k16(scores[0], q[step], keys[0], T{});
        mma_m16n8k16(scores[1], q[step], keys[1], T{});
    }
    float weights[2][2];
    float max = running.max;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int slot = i / 2 * 8 + lane_idx() % 4 * 2 + i % 2;
        float score = scores[i / 2][i % 2] + scores[i / 2][i % 2 + 2];
        if (softcap > 0.0f) score = bounded_score(score, softcap);
        weights[i / 2][i % 2] = slot >= first && slot < end ? score : -INFINITY_F32;
        max = fmaxf(max, weights[i / 2][i % 2]);
    }
    max = quad_max(max);
    float reference = softmax_reference(max), factor = exp2_fast(running.max - reference);
    running.max = max;
    running.sum *= factor;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        weights[i / 2][i % 2] = exp2_fast(weights[i / 2][i % 2] - reference);
        running.sum += weights[i / 2][i % 2];
    }
    u32 parts[4];
    split2<T>(weights[0][0], weights[0][1], parts[0], parts[1]);
    split2<T>(weights[1][0], weights[1][1], parts[2], parts[3]);
#pragma unroll
    for (int step = 0; step < HEAD_DIM / 16; step++) {
        u32 values[2][2];
        load_values<HEAD_DIM>(values, v, 0, step);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float(&out)[4] = running.out[2 * step + half];
#pragma unroll
            for (int i = 0; i < 4; i++) out[i] *= factor;
            mma_m16n8k16(out, parts, values[half], T{});
        }
    }
}

// What a block computes: some heads of one kv head, over positions [begin, end).
struct Work {
    u32 row;
    int seq;
    int kv_head;
    int first_head;
    int heads;
    int begin;
    int end;
};

// One warp's part of it: every WARPS-th cache block.
template <class T, int HEAD_DIM>
DEVICE void attend_blocks(Running<HEAD_DIM>& running, Staging<T, HEAD_DIM>& staging, const AttentionArgs& args,
                          const Work& work) {
    constexpr int STAGES = Staging<T, HEAD_DIM>::STAGES;
    constexpr int AHEAD = STAGES - 1;
    const int first_block = work.begin / BLOCK_TOKENS + warp_idx();
    const int visits = (ceil_div(work.end, BLOCK_TOKENS) - first_block + WARPS - 1) / WARPS;
    BlockIds ids = block_ids(args.block_tables + u64(work.seq) * args.max_blocks + first_block, WARPS, visits);
    auto position = [&](int visit) { return (first_block + visit * WARPS) * BLOCK_TOKENS; };
    auto fetch = [&](int visit) {
        if (visit < visits) {
            u64 at = cache_offset(next_block_id(ids, visit), work.kv_head, args.kv_heads, HEAD_DIM);
            int first = work.begin - position(visit), end = work.end - position(visit);
            copy_cache_block<HEAD_DIM>(staging.stage[visit % STAGES].k, static_cast<const T*>(args.k_cache) + at, first, end);
            copy_cache_block<HEAD_DIM>(staging.stage[visit % STAGES].v, static_cast<const T*>(args.v_cache) + at, first, end);
        }
        // Groups are counted, so there is one for each visit, even an empty one.
        cp_async_commit();
    };
    for (int visit = 0; visit < STAGES; visit++) fetch(visit);
    // While those are on their way.
    u32 q[HEAD_DIM / 16][4];
    const float* queries = args.q + (u64(work.row) * args.heads + work.first_head) * HEAD_DIM;
    load_queries<T, HEAD_DIM>(q, queries, work.heads, args.scale * LOG2_E);
    for (int visit = 0; visit < visits; visit++) {
        cp_async_wait<AHEAD>();
        __syncwarp();
        const auto& stage = staging.stage[visit % STAGES];
        attend<T, HEAD_DIM>(running, q, stage.k, stage.v, args.softcap, work.begin - position(visit), work.end - position(visit));
        __syncwarp();
        fetch(visit + STAGES);
    }
}

// Leaves a warp's result where the block finds it.
template <class T, int HEAD_DIM>
DEVICE void leave_result(const Running<HEAD_DIM>& running, Staging<T, HEAD_DIM>& staging, WarpSoftmax& softmax) {
    int head = lane_idx() / 4, pair = lane_idx() % 4;
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 8; i++) {
        float* to = staging.out + head * Staging<T, HEAD_DIM>::OUT_STRIDE + i * 8 + pair * 2;
        to[0] = running.out[i][0] + running.out[i][2];
        to[1] = running.out[i][1] + running.out[i][3];
    }
    float sum = quad_sum(running.sum);
    if (pair == 0) {
        softmax.max[warp_idx()][head] = running.max;
        softmax.sum[warp_idx()][head] = sum;
    }
}

// A softmax' denominator as `lse` has it.
DEVICE float log_sum(float max, float sum) { return max * LN_2 + logf(sum); }

// Merges the warps' results and writes them: the row's, or a split's part.
template <class T, int HEAD_DIM>
DEVICE void merge_warps(const DecodeArgs& args, const Work& work, const Staging<T, HEAD_DIM>* staging,
                        const WarpSoftmax& softmax) {
    const AttentionArgs& a = args.attention;
    for (int i = threadIdx.x; i < work.heads * (HEAD_DIM / 4); i += THREADS) {
        int head = i / (HEAD_DIM / 4), dim = i % (HEAD_DIM / 4) * 4;
        float max = -INFINITY_F32, sum = 0.0f, out[4] = {};
        for (int warp = 0; warp < WARPS; warp++) max = fmaxf(max, softmax.max[warp][head]);
        for (int warp = 0; warp < WARPS; warp++) {
            float weight = exp2_fast(softmax.max[warp][head] - max);
            sum += weight * softmax.sum[warp][head];
            Packed<float> part = load16(staging[warp].out + head * Staging<T, HEAD_DIM>::OUT_STRIDE + dim);
            for (int j = 0; j < 4; j++) out[j] += weight * part.at[j];
        }
        if (args.num_splits == 1) {
            u64 at = u64(work.row) * a.heads + work.first_head + head;
            for (int j = 0; j < 4; j++) out[j] /= sum;
            store_elements4(a.out, at * HEAD_DIM + dim, out, a.out_type);
            if (dim == 0 && a.lse) a.lse[at] = log_sum(max, sum);
        } else {
            u64 at = (u64(work.seq) * a.heads + work.first_head + head) * args.num_splits + blockIdx.x;
            store4(args.partial_out + at * HEAD_DIM + dim, out);
            if (dim == 0) args.partial_softmax[2 * at] = max, args.partial_softmax[2 * at + 1] = sum;
        }
    }
}

template <class T, int HEAD_DIM>
DEVICE void decode(const DecodeArgs& args) {
    DYNAMIC_SHARED(memory);
    SHARED(WarpSoftmax, softmax);
    auto* staging = reinterpret_cast<Staging<T, HEAD_DIM>*>(memory);
    const AttentionArgs& a = args.attention;
    const int seq = int(blockIdx.z), split = int(blockIdx.x);
    DecodeRow row;
    if (!find_row(a, seq, row)) return;
    const int begin = max(row.first, split * args.split_tokens), end = min(row.end, (split + 1) * args.split_tokens);
    if (begin >= end) return;

    const int group = a.heads / a.kv_heads, blocks_of_group = ceil_div(group, BLOCK_HEADS);
    const int kv_head = int(blockIdx.y) / blocks_of_group, head = int(blockIdx.y) % blocks_of_group * BLOCK_HEADS;
    const Work work{row.row, seq, kv_head, kv_head * group + head, min(BLOCK_HEADS, group - head), begin, end};
    Running<HEAD_DIM> running{};
    running.max = -INFINITY_F32;
    attend_blocks<T, HEAD_DIM>(running, staging[warp_idx()], a, work);
    leave_result<T, HEAD_DIM>(running, staging[warp_idx()], softmax);
    __syncthreads();
    merge_warps<T, HEAD_DIM>(args, work, staging, softmax);
}

KERNEL(attention_decode_bf16_64, DecodeArgs, THREADS) { decode<bf16, 64>(args); }
KERNEL(attention_decode_bf16_96, DecodeArgs, THREADS) { decode<bf16, 96>(args); }
KERNEL(attention_decode_bf16_128, DecodeArgs, THREADS) { decode<bf16, 128>(args); }
KERNEL(attention_decode_f16_64, DecodeArgs, THREADS) { decode<f16, 64>(args); }
KERNEL(attention_decode_f16_96, DecodeArgs, THREADS) { decode<f16, 96>(args); }
KERNEL(attention_decode_f16_128, DecodeArgs, THREADS) { decode<f16, 128>(args); }

struct CombineRoom {
    float out[WARPS][MAX_HEAD_DIM];
    float sum[WARPS];
};

// Merges the splits of a row and head. Each warp takes every fourth, so that many loads are on their way at once.
KERNEL(attention_decode_combine, DecodeArgs, THREADS) {
    SHARED(CombineRoom, room);
    const AttentionArgs& a = args.attention;
    DecodeRow row;
    if (!find_row(a, int(blockIdx.y), row)) return;
    const int first = row.first / args.split_tokens, last = (row.end - 1) / args.split_tokens;
    const u64 parts = (u64(blockIdx.y) * a.heads + blockIdx.x) * args.num_splits;
    const float* softmax = args.partial_softmax + 2 * parts;
    float max = -INFINITY_F32;
    for (int split = first + lane_idx(); split <= last; split += WARP_LANES) max = fmaxf(max, softmax[2 * split]);
    max = warp_max(max);

    const int dim = lane_idx() * 4;
    float sum = 0.0f, out[4] = {};
#pragma unroll 4
    for (int split = first + warp_idx(); split <= last; split += WARPS) {
        float weight = exp2_fast(softmax[2 * split] - max);
        sum += weight * softmax[2 * split + 1];
        if (dim < a.head_dim) {
            Packed<float> part = load16(args.partial_out + (parts + split) * a.head_dim + dim);
            for (int j = 0; j < 4; j++) out[j] += weight * part.at[j];
        }
    }
    if (dim < a.head_dim) store4(room.out[warp_idx()] + dim, out);
    if (lane_idx() == 0) room.sum[warp_idx()] = sum;
    __syncthreads();
    const u64 of_row = u64(row.row) * a.heads + blockIdx.x;
    const float total = room.sum[0] + room.sum[1] + room.sum[2] + room.sum[3];
    for (int d = threadIdx.x; d < a.head_dim; d += THREADS) {
        float value = room.out[0][d] + room.out[1][d] + room.out[2][d] + room.out[3][d];
        store_element(a.out, of_row * a.head_dim + d, value / total, a.out_type);
    }
    if (threadIdx.x == 0 && a.lse) a.lse[of_row] = log_sum(max, total);
}
