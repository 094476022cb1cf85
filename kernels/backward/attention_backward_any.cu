// The gradient of causal attention within each sequence (Dao, arXiv 2307.08691, algorithm 2), in f32 throughout and for any
// head size: what attention_backward.cu, whose head explains the method, computes for some sizes on tensor cores and with
// rounded operands.
//
// A block has 32 keys, or queries, of a head and meets the other side's 32 at a time. A thread computes 2 by 2 of the 32 by
// 32 scores, 32 dimensions at a time; then of the gradients, which it sums in memory that no other thread touches, since a
// head of any size fits neither registers nor shared memory. All products are of 32 by 32 by 32 in shared memory, simple
// rather than fast: four values are read there for four multiplications.
//
// Launch, one after the other; slots = rows / 32 + num_seqs (whole division):
//     attention_backward_any_delta: grid (rows), block 256
//     attention_backward_any_keys: grid (slots, kv_heads), block 256
//     attention_backward_any_queries: grid (slots, heads), block 256
// The last two may change places, or run at the same time.
#include "../lib/kernel.cuh"

// The arguments of all three; kv_heads divides heads, and head h reads kv head h / (heads / kv_heads).
struct AttentionBackwardAnyArgs {
    const float* q;         // [rows, heads, dim]
    const float* k;         // [rows, kv_heads, dim]
    const float* v;         // as k
    const float* out;       // as q: what the forward op gave
    const float* d_out;     // as q
    const float* lse;       // [rows, heads]: natural logarithm of the sum of exp(scale * score)
    float* delta;           // [rows, heads]: room that `delta` fills
    float* d_q;             // as q, written
    float* d_k;             // as k, written
    float* d_v;             // as k, written
    const u32* seq_starts;  // [num_seqs + 1]: first row of each sequence, and the number of rows
    int num_seqs;
    int heads;
    int kv_heads;
    int dim;      // any
    int window;   // a row sees this many, itself included; 0 for all before it
    float scale;  // factor on the scores
    float softcap;  // scores s, scaled, became softcap * tanh(s / softcap); 0 if not
};

#define THREADS 256
// Queries, keys or dimensions of a product.
#define TILE 32

// One float more a row: threads that read a column find it in 32 banks.
struct Square {
    float at[TILE][TILE + 1];
};

struct AttentionAnyTiles {
    // [row, dimension], 32 dimensions.
    Square q, d_out, k, v;
    // [query, key].
    Square weights, d_scores;
};

// delta[row, head] = Σ out d_out.
KERNEL(attention_backward_any_delta, AttentionBackwardAnyArgs, THREADS) {
    for (int head = warp_idx(); head < args.heads; head += THREADS / WARP_LANES) {
        const u64 of_head = u64(blockIdx.x) * args.heads + head, at = of_head * args.dim;
        float sum = 0.0f;
        for (int i = lane_idx(); i < args.dim; i += WARP_LANES) sum += args.out[at + i] * args.d_out[at + i];
        sum = warp_sum(sum);
        if (lane_idx() == 0) args.delta[of_head] = sum;
    }
}

// Place in a square of the thread's row and column i.
DEVICE int row_of(int i) { return int(threadIdx.x) / 16 + 16 * i; }
DEVICE int col_of(int i) { return int(threadIdx.x) % 16 + 16 * i; }

// Rows first to first + 31 of one head of a sequence, and 32 of its dimensions; what does not exist becomes 0.
DEVICE void load_square(Square& to, const float* head, u64 stride, int first, int len, int first_dim, int dim) {
    const int col = lane_idx();
    for (int row = warp_idx(); row < TILE; row += THREADS / WARP_LANES) {
        const bool exists = first + row < len && first_dim + col < dim;
        to.at[row][col] = exists ? head[u64(first + row) * stride + first_dim + col] : 0.0f;
    }
}

// A square read by rows, or by columns.
template <bool BY_COLUMNS>
DEVICE float element(const Square& of, int row, int col) {
    return BY_COLUMNS ? of.at[col][row] : of.at[row][col];
}
// sums[i][j] += Σ_k a[row_of(i), k] b[col_of(j), k].
template <bool A_BY_COLUMNS, bool B_BY_COLUMNS>
DEVICE void add_product(float (&sums)[2][2], const Square& a, const Square& b) {
#pragma unroll 8
    for (int k = 0; k < TILE; k++) {
        for (int i = 0; i < 2; i++) {
            const float factor = element<A_BY_COLUMNS>(a, row_of(i), k);
            for (int j = 0; j < 2; j++) sums[i][j] += factor * element<B_BY_COLUMNS>(b, col_of(j), k);
        }
    }
}

// Adds `factor` times the thread's sums to its place in rows of a head; with `is_first` writes them.
DEVICE void add_to_rows(float* head, const float (&sums)[2][2], float factor, u64 stride, int first, int len, int first_dim,
                        int dim, bool is_first) {
    for (int i = 0; i < 2; i++) {
        for (int j = 0; j < 2; j++) {
            if (first + row_of(i) >= len || first_dim + col_of(j) >= dim) continue;
            float& to = head[u64(first + row_of(i)) * stride + first_dim + col_of(j)];
            to = factor * sums[i][j] + (is_first ? 0.0f : to);
        }
    }
}

// One query head, its kv head, and the sequence.
struct AttentionHead {
    u64 q_at, kv_at, row_at;  // of the sequence's first row in q, in k, in lse
    u64 q_stride, kv_stride;
    int len;
};
DEVICE AttentionHead attention_head(const AttentionBackwardAnyArgs& args, const SequenceTile& tile, int head) {
    const int kv_head = head / (args.heads / args.kv_heads);
    const u64 q_stride = u64(args.heads) * args.dim, kv_stride = u64(args.kv_heads) * args.dim;
    return {tile.start * q_stride + u64(head) * args.dim, tile.start * kv_stride + u64(kv_head) * args.dim,
            u64(tile.start) * args.heads + head, q_stride, kv_stride, tile.len};
}

// Fills tiles.weights and tiles.d_scores for 32 queries and 32 keys. Queries beyond the last are zeros, as their lse and
// delta: they add nothing. Begins with a barrier; readers have to wait for another.
DEVICE void score(const AttentionBackwardAnyArgs& args, const AttentionHead& of, int first_query, int first_key,
                  AttentionAnyTiles& tiles) {
    float scores[2][2] = {}, d_weights[2][2] = {};
    for (int d = 0; d < args.dim; d += TILE) {
        __syncthreads();
        load_square(tiles.q, args.q + of.q_at, of.q_stride, first_query, of.len, d, args.dim);
        load_square(tiles.d_out, args.d_out + of.q_at, of.q_stride, first_query, of.len, d, args.dim);
        load_square(tiles.k, args.k + of.kv_at, of.kv_stride, first_key, of.len, d, args.dim);
        load_square(tiles.v, args.v + of.kv_at, of.kv_stride, first_key, of.len, d, args.dim);
        __syncthreads();
        add_product<false, false>(scores, tiles.q, tiles.k);
        add_product<false, false>(d_weights, tiles.d_out, tiles.v);
    }
    for (int i = 0; i < 2; i++) {
        const int query = first_query + row_of(i);
        const u64 of_row = of.row_at + u64(query) * args.heads;
        const float lse = query < of.len ? args.lse[of_row] : 0.0f, delta = query < of.len ? args.delta[of_row] : 0.0f;
        for (int j = 0; j < 2; j++) {
            const int key = first_key + col_of(j);
            const bool is_seen = key <= query && (args.window == 0 || query - key < args.window);
            float score = args.scale * scores[i][j], slope = 1.0f;
            if (args.softcap > 0.0f) {
                const float t = tanhf(score / args.softcap);
                score = args.softcap * t;
                slope = 1.0f - t * t;
            }
            const float weight = is_seen ? expf(score - lse) : 0.0f;
            tiles.weights.at[row_of(i)][col_of(j)] = weight;
            tiles.d_scores.at[row_of(i)][col_of(j)] = weight * (d_weights[i][j] - delta) * slope;
        }
    }
}

// Gradients of 32 keys and values: through all queries that see any of them, of one head of the group after the other.
KERNEL(attention_backward_any_keys, AttentionBackwardAnyArgs, THREADS) {
    SHARED(AttentionAnyTiles, tiles);
    // A sequence's first keys, which most queries see, come first.
    const SequenceTile tile = sequence_tile(args.seq_starts, args.num_seqs, TILE, int(blockIdx.x));
    if (tile.first >= tile.len) return;
    const int group = args.heads / args.kv_heads, first_head = int(blockIdx.y) * group;
    const bool is_cut = args.window > 0 && args.window < tile.len - tile.first - (TILE - 1);
    const int end = is_cut ? tile.first + TILE - 1 + args.window : tile.len;
    for (int head = first_head; head < first_head + group; head++) {
        const AttentionHead of = attention_head(args, tile, head);
        for (int query = tile.first; query < end; query += TILE) {
            const bool is_first = head == first_head && query == tile.first;
            score(args, of, query, tile.first, tiles);
            for (int d = 0; d < args.dim; d += TILE) {
                __syncthreads();
                load_square(tiles.q, args.q + of.q_at, of.q_stride, query, of.len, d, args.dim);
                load_square(tiles.d_out, args.d_out + of.q_at, of.q_stride, query, of.len, d, args.dim);
                __syncthreads();
                float d_k[2][2] = {}, d_v[2][2] = {};
                add_product<true, true>(d_k, tiles.d_scores, tiles.q);
                add_product<true, true>(d_v, tiles.weights, tiles.d_out);
                add_to_rows(args.d_k + of.kv_at, d_k, args.scale, of.kv_stride, tile.first, of.len, d, args.dim, is_first);
                add_to_rows(args.d_v + of.kv_at, d_v, 1.0f, of.kv_stride, tile.first, of.len, d, args.dim, is_first);
            }
        }
    }
}

// Gradients of 32 queries of a head: through all keys that they see.
KERNEL(attention_backward_any_queries, AttentionBackwardAnyArgs, THREADS) {
    SHARED(AttentionAnyTiles, tiles);
    SequenceTile tile = sequence_tile(args.seq_starts, args.num_seqs, TILE, int(blockIdx.x));
    if (tile.first >= tile.len) return;
    // A sequence's last queries, which see most keys, come first.
    tile.first = (tile.len - 1) / TILE * TILE - tile.first;
    const AttentionHead of = attention_head(args, tile, int(blockIdx.y));
    const int begin = args.window > 0 ? max(0, tile.first - args.window + 1) : 0;
    for (int key = begin; key < min(tile.first + TILE, tile.len); key += TILE) {
        score(args, of, tile.first, key, tiles);
        for (int d = 0; d < args.dim; d += TILE) {
            __syncthreads();
            load_square(tiles.k, args.k + of.kv_at, of.kv_stride, key, of.len, d, args.dim);
            __syncthreads();
            float d_q[2][2] = {};
            add_product<false, true>(d_q, tiles.d_scores, tiles.k);
            add_to_rows(args.d_q + of.q_at, d_q, args.scale, of.q_stride, tile.first, of.len, d, args.dim, key == begin);
        }
    }
}
