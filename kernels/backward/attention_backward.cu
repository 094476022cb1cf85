// The gradient of causal attention within each sequence (Dao, arXiv 2307.08691, algorithm 2), for head sizes 64, 96 and 128
// on tensor cores. Scores are computed again, tile by tile; with the forward op's lse their softmax is known at once:
//     P = exp(scale Q Kᵀ - lse)    dV = Pᵀ dO    dS = P (dO Vᵀ - delta)    dK = scale dSᵀ Q    dQ = scale dS K
//     delta = Σ_dim out d_out of each row and head
// The paper's one kernel adds to dQ atomically, in any order. Here one kernel goes through the queries of a tile of keys,
// another through the keys of a tile of queries: seven products instead of five, and sums in one order.
//
// Accuracy: q, k, v and d_out are rounded to bf16 first, P and dS before the products that they enter; sums are f32. For the
// rounded operands a gradient is within 2⁻⁸ of the sum of its terms' magnitudes. P is exact only if lse is of scores of the
// rounded q and k: a forward op that keeps more digits leaves it off by the factor exp(difference of the scores), often a
// percent. attention_backward_any.cu rounds nothing.
//
// A block is 4 warps with 64 rows of their own (16 a warp, kept in shared memory) and meets the other side's rows STEP at a
// time, in two stages of asynchronous copies. P and dS go from one product into the next in registers, since a sum of
// mma.sync lies where its operand has to. Rows of shared memory are padded by 16 bytes, so that 8 of them, as ldmatrix reads,
// lie in 32 banks.
//
// Launch, one after the other; slots = rows / 64 + num_seqs (whole division):
//     attention_backward_prepare: grid (rows), block 256
//     attention_backward_keys_DIM: grid (slots, kv_heads), block 128
//     attention_backward_queries_DIM: grid (slots, heads), block 128
// These two with 56320, 53760 or 70144 bytes of dynamic shared memory, for DIM 64, 96 or 128.
// The last two may change places, or run at the same time. q_rounded and d_out_rounded together take as much room as one F32
// tensor of q's shape.
#include "../lib/mma.cuh"

// The arguments of all three. Pointers are multiples of 16; kv_heads divides heads, head h reads kv head h / (heads /
// kv_heads).
struct AttentionBackwardArgs {
    const float* q;         // [rows, heads, dim]
    const float* k;         // [rows, kv_heads, dim]
    const float* v;         // as k
    const float* out;       // as q: what the forward op gave
    const float* d_out;     // as q
    const float* lse;       // [rows, heads]: natural logarithm of the sum of exp(scale * score)
    bf16* q_rounded;        // as q; this and the next four are room that `prepare` fills
    bf16* k_rounded;        // as k
    bf16* v_rounded;        // as k
    bf16* d_out_rounded;    // as q
    float* delta;           // [rows, heads]
    float* d_q;             // as q, written
    float* d_k;             // as k, written
    float* d_v;             // as k, written
    const u32* seq_starts;  // [num_seqs + 1]: first row of each sequence, and the number of rows
    int num_seqs;
    int heads;
    int kv_heads;
    int dim;      // 64, 96 or 128: that of the entry points
    int window;   // a row sees this many, itself included; 0 for all before it
    float scale;  // factor on the scores
    float softcap;  // scores s, scaled, became softcap * tanh(s / softcap); 0 if not
};

#define PREPARE_THREADS 256
#define THREADS 128
// Rows of a block, and of a warp.
#define OWN 64
#define WARP_ROWS 16

// Four elements, rounded.
struct alignas(8) Rounded4 {
    bf16 at[4];
};
DEVICE Rounded4 round4(const Packed<float>& v) {
    return {{from_f32<bf16>(v.at[0]), from_f32<bf16>(v.at[1]), from_f32<bf16>(v.at[2]), from_f32<bf16>(v.at[3])}};
}
DEVICE void store_rounded(bf16* to, const Rounded4& v) { *reinterpret_cast<Rounded4*>(to) = v; }

// A block has a row; a warp takes every eighth head of its queries, then of its keys.
KERNEL(attention_backward_prepare, AttentionBackwardArgs, PREPARE_THREADS) {
    const u64 row = blockIdx.x;
    const int first = 4 * lane_idx();
    const bool exists = first < args.dim;
    for (int i = warp_idx(); i < args.heads + args.kv_heads; i += PREPARE_THREADS / WARP_LANES) {
        if (i >= args.heads) {
            const u64 at = (row * args.kv_heads + (i - args.heads)) * args.dim + first;
            if (exists) {
                store_rounded(args.k_rounded + at, round4(load16(args.k + at)));
                store_rounded(args.v_rounded + at, round4(load16(args.v + at)));
            }
            continue;
        }
        const u64 at = (row * args.heads + i) * args.dim + first;
        float sum = 0.0f;
        if (exists) {
            store_rounded(args.q_rounded + at, round4(load16(args.q + at)));
            const Packed<float> out = load16(args.out + at);
            const Rounded4 d_out = round4(load16(args.d_out + at));
            store_rounded(args.d_out_rounded + at, d_out);
            // Of the rounded d_out, as the products with values are: P (dO Vᵀ - delta) adds up to 0 over a row's keys.
            for (int j = 0; j < 4; j++) sum += out.at[j] * to_f32(d_out.at[j]);
        }
        sum = warp_sum(sum);
        if (lane_idx() == 0) args.delta[row * args.heads + i] = sum;
    }
}

// Rows of one head in shared memory.
template <int DIM, int ROWS>
struct HeadRows {
    bf16 at[ROWS][DIM + 8];
};

template <int DIM, int STEP>
struct AttentionTiles {
    HeadRows<DIM, OWN> own[2];         // keys and values, or queries and d_out
    HeadRows<DIM, STEP> others[2][2];  // the other two, in two stages
    float lse[2][STEP];                // of the other rows, if these are queries
    float delta[2][STEP];
};

// Begins to copy ROWS rows of a head from row `first` of a sequence on; those at `end` and beyond become zeros. `from` is the
// head in the sequence's first row.
template <int DIM, int ROWS>
DEVICE void copy_rows(HeadRows<DIM, ROWS>& to, const bf16* from, int first, int end, int num_heads) {
    constexpr int CHUNKS = DIM / 8;
    static_assert(ROWS * CHUNKS % THREADS == 0, "threads have equal shares");
#pragma unroll
    for (int i = 0; i < ROWS * CHUNKS / THREADS; i++) {
        const int chunk = int(threadIdx.x) + i * THREADS;
        const int row = chunk / CHUNKS, col = chunk % CHUNKS * 8;
        const bool exists = first + row < end;
        const u64 at = exists ? u64(first + row) * num_heads * DIM + col : 0;
        cp_async16(&to.at[row][col], from + at, exists ? 16 : 0);
    }
}

// Two adjacent operands b of mma_m16n8k16.
struct OperandPair {
    u32 first[2], second[2];
};
// Those of 16 rows from `row` on, for products that sum over 16 columns from `col` on.
template <int DIM, int ROWS>
DEVICE OperandPair load_rows(const HeadRows<DIM, ROWS>& rows, int row, int col) {
    const int lane = lane_idx();
    u32 r[4];
    ldmatrix_x4(r, &rows.at[row + lane / 16 * 8 + lane % 8][col + lane / 8 % 2 * 8]);
    return {{r[0], r[1]}, {r[2], r[3]}};
}
// Those of 16 columns, for products that sum over 16 rows.
template <int DIM, int ROWS>
DEVICE OperandPair load_columns(const HeadRows<DIM, ROWS>& rows, int row, int col) {
    const int lane = lane_idx();
    u32 r[4];
    ldmatrix_x4_transposed(r, &rows.at[row + lane % 16][col + lane / 16 * 8]);
    return {{r[0], r[1]}, {r[2], r[3]}};
}

// sums[16, STEP] += own[16 rows from own_row on] othersᵀ, as 8 columns after the other.
template <int DIM, int STEP>
DEVICE void add_scores(float (&sums)[STEP / 8][4], const HeadRows<DIM, OWN>& own, int own_row,
                       const HeadRows<DIM, STEP>& others) {
    const int lane = lane_idx();
#pragma unroll
    for (int col = 0; col < DIM; col += 16) {
        u32 a[4];
        ldmatrix_x4(a, &own.at[own_row + lane % 16][col + lane / 16 * 8]);
#pragma unroll
        for (int n = 0; n < STEP / 8; n += 2) {
            const OperandPair b = load_rows(others, n * 8, col);
            mma_m16n8k16(sums[n], a, b.first, bf16{});
            mma_m16n8k16(sums[n + 1], a, b.second, bf16{});
        }
    }
}

// sums[16, DIM] += factors[16, STEP] others, the factors being rounded.
template <int DIM, int STEP>
DEVICE void add_product(float (&sums)[DIM / 8][4], const float (&factors)[STEP / 8][4], const HeadRows<DIM, STEP>& others) {
#pragma unroll
    for (int k = 0; k < STEP / 8; k += 2) {
        const float(&low)[4] = factors[k], (&high)[4] = factors[k + 1];
        const u32 a[4] = {pack2<bf16>(low[0], low[1]), pack2<bf16>(low[2], low[3]), pack2<bf16>(high[0], high[1]),
                          pack2<bf16>(high[2], high[3])};
#pragma unroll
        for (int n = 0; n < DIM / 8; n += 2) {
            const OperandPair b = load_columns(others, k * 8, n * 8);
            mma_m16n8k16(sums[n], a, b.first, bf16{});
            mma_m16n8k16(sums[n + 1], a, b.second, bf16{});
        }
    }
}

// Row and column in a warp's 16 by 8 sums of the thread's sum i.
DEVICE int sum_row(int i) { return lane_idx() / 4 + i / 2 * 8; }
DEVICE int sum_col(int i) { return lane_idx() % 4 * 2 + i % 2; }

// The two adjacent columns of each row.
struct alignas(8) Pair {
    float at[2];
};

// Writes a warp's sums, times `factor`, to rows of a head, `stride` elements apart, of which `count` exist.
template <int DIM>
DEVICE void write_rows(float* to, const float (&sums)[DIM / 8][4], float factor, int count, u64 stride) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        if (sum_row(i) >= count) continue;
        float* row = to + sum_row(i) * stride + sum_col(i);
#pragma unroll
        for (int n = 0; n < DIM / 8; n++) {
            *reinterpret_cast<Pair*>(row + n * 8) = Pair{{factor * sums[n][i], factor * sums[n][i + 1]}};
        }
    }
}

// Where scores were bounded: products of queries and keys become those that `scale` makes the bounded scores times log2 e, and
// gradients of the weights, less `delta`, are multiplied by the slope of the bound.
template <int STEP, class Delta>
DEVICE void bound_scores(float (&products)[STEP / 8][4], float (&d_weights)[STEP / 8][4], float scale, float softcap, Delta delta) {
    const float cap = softcap * LOG2_E;
#pragma unroll
    for (int n = 0; n < STEP / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float t = tanhf(products[n][i] * scale / cap);
            products[n][i] = cap * t / scale;
            d_weights[n][i] = delta(n, i) + (d_weights[n][i] - delta(n, i)) * (1.0f - t * t);
        }
    }
}

DEVICE bool is_seen(int query, int key, int window) { return key <= query && (window == 0 || query - key < window); }

// Weights of pairs that do not count become 0; `counts` is asked for rows and columns of the warp's 16 by STEP.
template <int STEP, class Counts>
DEVICE void mask(float (&weights)[STEP / 8][4], Counts counts) {
#pragma unroll
    for (int n = 0; n < STEP / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) weights[n][i] = counts(sum_row(i), n * 8 + sum_col(i)) ? weights[n][i] : 0.0f;
    }
}

// STEP queries of a head.
struct QueryStep {
    int head, first;
};

// Gradients of 64 keys and values: through all queries that see any of them, of one head of the group after the other.
template <int DIM, int STEP>
DEVICE void backward_keys(const AttentionBackwardArgs& args) {
    DYNAMIC_SHARED(memory);
    auto& tiles = *reinterpret_cast<AttentionTiles<DIM, STEP>*>(memory);
    // A sequence's first keys, which most queries see, come first.
    const SequenceTile tile = sequence_tile(args.seq_starts, args.num_seqs, OWN, int(blockIdx.x));
    if (tile.first >= tile.len) return;
    const int kv_head = int(blockIdx.y), group = args.heads / args.kv_heads;
    const bool is_cut = args.window > 0 && args.window < tile.len - tile.first - (OWN - 1);
    const int end = is_cut ? tile.first + OWN - 1 + args.window : tile.len;

    auto fetch = [&](QueryStep step, int stage) {
        const u64 at = u64(tile.start) * args.heads + step.head;
        copy_rows(tiles.others[stage][0], args.q_rounded + at * DIM, step.first, tile.len, args.heads);
        copy_rows(tiles.others[stage][1], args.d_out_rounded + at * DIM, step.first, tile.len, args.heads);
        if (int(threadIdx.x) < STEP) {
            const int row = step.first + int(threadIdx.x);
            const u64 of_row = row < tile.len ? at + u64(row) * args.heads : 0;
            const int bytes = row < tile.len ? 4 : 0;
            cp_async4(&tiles.lse[stage][threadIdx.x], args.lse + of_row, bytes);
            cp_async4(&tiles.delta[stage][threadIdx.x], args.delta + of_row, bytes);
        }
        cp_async_commit();
    };
    const u64 own = (u64(tile.start) * args.kv_heads + kv_head) * DIM;
    copy_rows(tiles.own[0], args.k_rounded + own, tile.first, tile.len, args.kv_heads);
    copy_rows(tiles.own[1], args.v_rounded + own, tile.first, tile.len, args.kv_heads);
    QueryStep step{kv_head * group, tile.first};
    fetch(step, 0);

    // exp(x) is exp2(x log2 e), which is what the hardware has.
    const float scale = args.scale * LOG2_E;
    const int warp_row = warp_idx() * WARP_ROWS;
    float d_k[DIM / 8][4] = {}, d_v[DIM / 8][4] = {};
    for (int stage = 0; step.head < (kv_head + 1) * group; stage ^= 1) {
        // The step is here, and nobody reads the one before.
        cp_async_wait<0>();
        __syncthreads();
        const bool is_last_of_head = step.first + STEP >= end;
        const QueryStep next{step.head + is_last_of_head, is_last_of_head ? tile.first : step.first + STEP};
        if (next.head < (kv_head + 1) * group) fetch(next, stage ^ 1);
        const auto& queries = tiles.others[stage][0];
        const auto& d_out = tiles.others[stage][1];
        float weights[STEP / 8][4] = {}, d_scores[STEP / 8][4] = {};
        add_scores(weights, tiles.own[0], warp_row, queries);
        add_scores(d_scores, tiles.own[1], warp_row, d_out);
        if (args.softcap > 0.0f) {
            bound_scores<STEP>(weights, d_scores, scale, args.softcap,
                               [&](int n, int i) { return tiles.delta[stage][n * 8 + sum_col(i)]; });
        }
        const int first_query = step.first, first_key = tile.first + warp_row;
        // Queries beyond the last are zeros, as their lse and delta: they add nothing.
        const bool sees_all = first_query >= first_key + WARP_ROWS - 1 &&
                              (args.window == 0 || first_query + STEP - 1 - first_key < args.window);
#pragma unroll
        for (int n = 0; n < STEP / 8; n++) {
            const Pair lse = *reinterpret_cast<const Pair*>(&tiles.lse[stage][n * 8 + sum_col(0)]);
#pragma unroll
            for (int i = 0; i < 4; i++) weights[n][i] = exp2_fast(weights[n][i] * scale - lse.at[i % 2] * LOG2_E);
        }
        if (!sees_all) {
            mask<STEP>(weights, [&](int key, int query) { return is_seen(first_query + query, first_key + key, args.window); });
        }
#pragma unroll
        for (int n = 0; n < STEP / 8; n++) {
            const Pair delta = *reinterpret_cast<const Pair*>(&tiles.delta[stage][n * 8 + sum_col(0)]);
#pragma unroll
            for (int i = 0; i < 4; i++) d_scores[n][i] = weights[n][i] * (d_scores[n][i] - delta.at[i % 2]);
        }
        add_product(d_v, weights, d_out);
        add_product(d_k, d_scores, queries);
        step = next;
    }
    const int first = tile.first + warp_row;
    const u64 to = own + u64(first) * args.kv_heads * DIM, stride = u64(args.kv_heads) * DIM;
    write_rows<DIM>(args.d_k + to, d_k, args.scale, tile.len - first, stride);
    write_rows<DIM>(args.d_v + to, d_v, 1.0f, tile.len - first, stride);
}
KERNEL(attention_backward_keys_64, AttentionBackwardArgs, THREADS) { backward_keys<64, 64>(args); }
KERNEL(attention_backward_keys_96, AttentionBackwardArgs, THREADS) { backward_keys<96, 32>(args); }
KERNEL(attention_backward_keys_128, AttentionBackwardArgs, THREADS) { backward_keys<128, 32>(args); }

// Gradients of 64 queries of a head: through all keys that they see.
template <int DIM, int STEP>
DEVICE void backward_queries(const AttentionBackwardArgs& args) {
    DYNAMIC_SHARED(memory);
    auto& tiles = *reinterpret_cast<AttentionTiles<DIM, STEP>*>(memory);
    SequenceTile tile = sequence_tile(args.seq_starts, args.num_seqs, OWN, int(blockIdx.x));
    if (tile.first >= tile.len) return;
    // A sequence's last queries, which see most keys, come first.
    tile.first = (tile.len - 1) / OWN * OWN - tile.first;
    const int head = int(blockIdx.y), kv_head = head / (args.heads / args.kv_heads);
    const int begin = args.window > 0 ? max(0, tile.first - args.window + 1) : 0;
    const int end = min(tile.first + OWN, tile.len);

    const u64 other = (u64(tile.start) * args.kv_heads + kv_head) * DIM;
    auto fetch = [&](int first, int stage) {
        copy_rows(tiles.others[stage][0], args.k_rounded + other, first, end, args.kv_heads);
        copy_rows(tiles.others[stage][1], args.v_rounded + other, first, end, args.kv_heads);
        cp_async_commit();
    };
    const u64 at = u64(tile.start) * args.heads + head;
    copy_rows(tiles.own[0], args.q_rounded + at * DIM, tile.first, tile.len, args.heads);
    copy_rows(tiles.own[1], args.d_out_rounded + at * DIM, tile.first, tile.len, args.heads);
    fetch(begin, 0);

    // exp(x) is exp2(x log2 e), which is what the hardware has.
    const float scale = args.scale * LOG2_E;
    const int warp_row = warp_idx() * WARP_ROWS;
    const int first_query = tile.first + warp_row;
    float lse[2] = {}, delta[2] = {};
    for (int i = 0; i < 2; i++) {
        const int row = first_query + sum_row(2 * i);
        if (row >= tile.len) continue;
        lse[i] = args.lse[at + u64(row) * args.heads] * LOG2_E;
        delta[i] = args.delta[at + u64(row) * args.heads];
    }
    float d_q[DIM / 8][4] = {};
    for (int first_key = begin, stage = 0; first_key < end; first_key += STEP, stage ^= 1) {
        // The step is here, and nobody reads the one before.
        cp_async_wait<0>();
        __syncthreads();
        if (first_key + STEP < end) fetch(first_key + STEP, stage ^ 1);
        const auto& keys = tiles.others[stage][0];
        float weights[STEP / 8][4] = {}, d_scores[STEP / 8][4] = {};
        add_scores(weights, tiles.own[0], warp_row, keys);
        add_scores(d_scores, tiles.own[1], warp_row, tiles.others[stage][1]);
        if (args.softcap > 0.0f) {
            bound_scores<STEP>(weights, d_scores, scale, args.softcap, [&](int, int i) { return delta[i / 2]; });
        }
        const bool sees_all = first_key + STEP - 1 <= first_query &&
                              (args.window == 0 || first_query + WARP_ROWS - 1 - first_key < args.window);
#pragma unroll
        for (int n = 0; n < STEP / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) weights[n][i] = exp2_fast(weights[n][i] * scale - lse[i / 2]);
        }
        if (!sees_all) {
            mask<STEP>(weights, [&](int query, int key) { return is_seen(first_query + query, first_key + key, args.window); });
        }
#pragma unroll
        for (int n = 0; n < STEP / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) d_scores[n][i] = weights[n][i] * (d_scores[n][i] - delta[i / 2]);
        }
        add_product(d_q, d_scores, keys);
    }
    const u64 to = (at + u64(first_query) * args.heads) * DIM;
    write_rows<DIM>(args.d_q + to, d_q, args.scale, tile.len - first_query, u64(args.heads) * DIM);
}
KERNEL(attention_backward_queries_64, AttentionBackwardArgs, THREADS) { backward_queries<64, 64>(args); }
KERNEL(attention_backward_queries_96, AttentionBackwardArgs, THREADS) { backward_queries<96, 32>(args); }
KERNEL(attention_backward_queries_128, AttentionBackwardArgs, THREADS) { backward_queries<128, 32>(args); }
