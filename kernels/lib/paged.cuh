// A step's rows and the paged key-value cache (Kwon et al., arXiv 2309.06180), as rope_kv writes it and attention reads it.
//
// A layer's cache is [blocks, kv_heads, BLOCK_TOKENS, head_dim], keys and values apart. Position p of sequence s lies in slot
// p % BLOCK_TOKENS of block block_tables[s, p / BLOCK_TOKENS]. Entries of a table past a sequence's context are never read.
#pragma once
#include "mma.cuh"

#define BLOCK_TOKENS 16
#define LN_2 0.6931471805599453f

// Operands of attention. A row sees the positions of its sequence up to its own, with a window the last `window` of them. Query
// head h reads kv head h / (heads / kv_heads). Pointers are multiples of 16.
struct AttentionArgs {
    const float* q;           // [rows, heads, head_dim]
    const void* k_cache;      // [blocks, kv_heads, BLOCK_TOKENS, head_dim] of the entry point's type
    const void* v_cache;      // as k_cache
    void* out;                // [rows, heads, head_dim] of out_type
    float* lse;               // [rows, heads]: logarithm of the sum of exp(scale * score), or null if not wanted
    const u32* positions;     // [rows]; those of a sequence are consecutive
    const u32* seq_starts;    // [num_seqs + 1]: first row of each sequence, and the number of rows
    const u32* block_tables;  // [num_seqs, max_blocks]
    int num_seqs;
    int max_blocks;
    int heads;
    int kv_heads;  // a divisor of heads
    int head_dim;
    int window;    // in tokens; 0 for none
    int min_rows;  // sequences of fewer rows are left out, their outputs untouched; at least 1
    int out_type;  // ElementType
    float scale;   // factor on the scores
    float softcap; // scores s, scaled, become softcap * tanh(s / softcap); 0 for as they are
};

// A score times log2 e, bounded.
DEVICE float bounded_score(float score, float softcap) {
    const float cap = softcap * LOG2_E;
    return cap * tanhf(score / cap);
}

// The first position that a row at `position` sees.
DEVICE int first_visible(int position, int window) { return window > 0 && position >= window ? position - window + 1 : 0; }

// Offset of the first vector of a head in a block.
DEVICE u64 cache_offset(u32 block, int kv_head, int kv_heads, int head_dim) {
    return (u64(block) * kv_heads + kv_head) * u64(BLOCK_TOKENS * head_dim);
}

// The sequence of a row: the last that starts at or before it. A whole warp asks; each round leaves a 32nd of the candidates.
DEVICE int sequence_of_row(const u32* seq_starts, int num_seqs, u32 row) {
    int first = 0;
    for (int left = num_seqs; left > 1;) {
        int step = ceil_div(left, WARP_LANES);
        int candidate = lane_idx() * step;
        bool starts = candidate < left && seq_starts[first + candidate] <= row;
        int skipped = (__popc(__ballot_sync(FULL_WARP, starts)) - 1) * step;
        first += skipped;
        left = min(step, left - skipped);
    }
    return first;
}

// 4 elements in one access.
template <class T>
struct alignas(4 * sizeof(T)) Four {
    T at[4];
};
template <class T>
DEVICE void store4(T* to, const float (&v)[4]) {
    Four<T> packed;
    for (int i = 0; i < 4; i++) packed.at[i] = from_f32<T>(v[i]);
    *reinterpret_cast<Four<T>*>(to) = packed;
}
// The same for a type known at run time, to elements i .. i + 3; i is a multiple of 4.
DEVICE void store_elements4(void* to, u64 i, const float (&v)[4], int type) {
    if (type == F32) store4(static_cast<float*>(to) + i, v);
    else if (type == BF16) store4(static_cast<bf16*>(to) + i, v);
    else store4(static_cast<f16*>(to) + i, v);
}

// Vectors of 16-bit elements in shared memory so that neither 8 rows of one ldmatrix nor a row's copies meet in a bank: 16-byte
// chunks are exchanged within each 128 bytes, or rows padded by one chunk where they are no multiple of 128 bytes.
template <int HEAD_DIM>
struct Rows {
    static constexpr int CHUNKS = HEAD_DIM / 8;
    static constexpr bool IS_SWIZZLED = CHUNKS % 8 == 0;
    static constexpr int STRIDE = IS_SWIZZLED ? HEAD_DIM : HEAD_DIM + 8;

    // Offset of a chunk, in elements.
    DEVICE int at(int row, int chunk) { return row * STRIDE + (IS_SWIZZLED ? chunk ^ (row & 7) : chunk) * 8; }
    // The same of a warp's i-th copy of rows that lie one after the other, written so that little depends on i.
    DEVICE int of_copy(int i, int lane) {
        constexpr int ROWS = WARP_LANES / CHUNKS;
        if (!IS_SWIZZLED) return (i * WARP_LANES + lane) * 8 + (i * WARP_LANES + lane) / CHUNKS * 8;
        int row = lane / CHUNKS, chunk = lane % CHUNKS ^ row;
        return row * STRIDE + i * ROWS * STRIDE + (chunk ^ (i * ROWS & 7)) * 8;
    }
};

// The blocks that a warp visits: `count` entries of a table, `stride` apart. Ids are read 32 at a time, and 32 visits early.
struct BlockIds {
    const u32* table;
    int stride;
    int count;
    u32 of_lane;  // lane l's: of visit 32 n + l
    u32 later;    // and 32 visits later
};
DEVICE u32 read_block_id(const BlockIds& ids, int visit) { return visit < ids.count ? ids.table[u64(visit) * ids.stride] : 0; }
DEVICE BlockIds block_ids(const u32* table, int stride, int count) {
    BlockIds ids{table, stride, count, 0, 0};
    ids.of_lane = read_block_id(ids, lane_idx());
    ids.later = read_block_id(ids, lane_idx() + WARP_LANES);
    return ids;
}
// A whole warp asks, for each visit in turn.
DEVICE u32 next_block_id(BlockIds& ids, int visit) {
    int lane = visit % WARP_LANES;
    if (lane == 0 && visit > 0) {
        ids.of_lane = ids.later;
        ids.later = read_block_id(ids, visit + WARP_LANES + lane_idx());
    }
    return __shfl_sync(FULL_WARP, ids.of_lane, lane);
}

// The same pointer, without how it was computed: accesses at constant distances then share a register, where the compiler would
// compute each address anew.
template <class T>
DEVICE const T* as_base(const T* p) {
#ifndef WARDROBE_HOST
    asm("" : "+l"(p));
#endif
    return p;
}

// A warp begins to copy a head's vectors of one block to BLOCK_TOKENS rows of shared memory, the first a multiple of 8. Slots
// outside [first, end) become zeros and are not read: they may hold NaN, which a weight of 0 would not undo.
template <int HEAD_DIM, class T>
DEVICE void copy_cache_block(T* rows, const T* vectors, int first, int end) {
    using Layout = Rows<HEAD_DIM>;
    constexpr int COPIES = BLOCK_TOKENS * Layout::CHUNKS / WARP_LANES;
    const int lane = lane_idx();
    const T* from = as_base(vectors + lane * 8);
    // Most blocks are visible as a whole, and need no comparisons.
    if (first <= 0 && end >= BLOCK_TOKENS) {
#pragma unroll
        for (int i = 0; i < COPIES; i++) cp_async16(rows + Layout::of_copy(i, lane), from + i * WARP_LANES * 8);
        return;
    }
#pragma unroll
    for (int i = 0; i < COPIES; i++) {
        int slot = (i * WARP_LANES + lane) / Layout::CHUNKS;
        cp_async16(rows + Layout::of_copy(i, lane), from + i * WARP_LANES * 8, slot >= first && slot < end ? 16 : 0);
    }
}

// Fragments of mma_m16n8k16's b for 16 keys and 16 dimensions: of keys 0 to 7 in b[0] and b[1], of 8 to 15 in b[2] and b[3].
template <int HEAD_DIM, class T>
DEVICE void load_keys(u32 (&b)[2][2], const T* rows, int first_row, int step) {
    int lane = lane_idx();
    u32 r[4];
    ldmatrix_x4(r, rows + Rows<HEAD_DIM>::at(first_row + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2));
    b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
}
// The same for 16 dimensions of 16 values, the sum running over the values.
template <int HEAD_DIM, class T>
DEVICE void load_values(u32 (&b)[2][2], const T* rows, int first_row, int step) {
    int lane = lane_idx();
    u32 r[4];
    ldmatrix_x4_transposed(r, rows + Rows<HEAD_DIM>::at(first_row + lane % 16, 2 * step + lane / 16));
    b[0][0] = r[0], b[0][1] = r[1], b[1][0] = r[2], b[1][1] = r[3];
}

// Sum and maximum over the four lanes that hold a row of mma_m16n8k16's d.
DEVICE float quad_sum(float v) {
    v += __shfl_xor_sync(FULL_WARP, v, 1);
    return v + __shfl_xor_sync(FULL_WARP, v, 2);
}
DEVICE float quad_max(float v) {
    v = fmaxf(v, __shfl_xor_sync(FULL_WARP, v, 1));
    return fmaxf(v, __shfl_xor_sync(FULL_WARP, v, 2));
}
// What is subtracted from scores whose maximum so far this is: 0 before any was visible, as infinity less infinity is NaN.
DEVICE float softmax_reference(float max) { return max == -INFINITY_F32 ? 0.0f : max; }
