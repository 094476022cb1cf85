// Rotary embeddings (Su et al., arXiv 2104.09864), writing keys and values into the paged cache, and both in one launch.
//
// A head's first 2 * half dimensions rotate in pairs (i, i + half), the rest is copied. Rows have a table each: that of their
// adapter's scaling. A thread takes 4 pairs, or 4 elements that are copied, at a time where half and head_dim are multiples
// of 4; else one. Nothing is reduced, so the cut matters to speed alone.
//
// Launch: grid (rows, any), block 256, no dynamic shared memory. Blocks of one row share its work evenly; wanted is about one
// for 256 pieces, y = ceil(pieces / 256), where a row has heads * head_dim / 8 pieces to rotate and kv_heads * head_dim / 4
// to copy.
//
//   rope                         both tensors to new ones. For gradients, direction -1 turns back.
//   kv_write_bf16, _f16, _f32    keys and values, F32, to a cache of that type.
//   rope_kv_bf16, _f16, _f32     queries and keys to new tensors; the same keys, and values, to the cache.
#include "lib/paged.cuh"

#define THREADS 256

struct RopeArgs {
    const float* x0;             // [rows, heads0, head_dim]; pointers are multiples of 16
    const float* x1;             // [rows, heads1, head_dim]; not read if heads1 is 0
    float* out0;                 // as x0, and not the same memory
    float* out1;                 // as x1
    const float* const* tables;  // [tables]: each [positions, half, 2], cosine and sine; a multiple of 16 each
    const u32* positions;        // [rows]
    const u32* rope_idx;         // [rows]: which table
    int heads0;
    int heads1;
    int head_dim;
    int half;         // pairs; 2 * half <= head_dim
    float direction;  // 1, or -1 for the inverse
};

struct KvWriteArgs {
    const float* k;           // [rows, kv_heads, head_dim]; pointers are multiples of 16
    const float* v;           // as k
    void* k_cache;            // [blocks, kv_heads, BLOCK_TOKENS, head_dim] of the entry point's type
    void* v_cache;            // as k_cache
    const u32* positions;     // [rows]
    const u32* seq_starts;    // [num_seqs + 1]
    const u32* block_tables;  // [num_seqs, max_blocks]
    int num_seqs;
    int max_blocks;
    int kv_heads;
    int head_dim;
};

struct RopeKvArgs {
    const float* q;              // [rows, heads, head_dim]; pointers are multiples of 16
    const float* k;              // [rows, kv_heads, head_dim]
    const float* v;              // as k
    float* q_out;                // as q, and not the same memory
    float* k_out;                // as k; or null, if keys are only wanted in the cache
    void* k_cache;               // [blocks, kv_heads, BLOCK_TOKENS, head_dim] of the entry point's type
    void* v_cache;               // as k_cache
    const float* const* tables;  // [tables]: each [positions, half, 2], cosine and sine; a multiple of 16 each
    const u32* positions;        // [rows]
    const u32* rope_idx;         // [rows]: which table
    const u32* seq_starts;       // [num_seqs + 1]
    const u32* block_tables;     // [num_seqs, max_blocks]
    int num_seqs;
    int max_blocks;
    int heads;
    int kv_heads;
    int head_dim;
    int half;         // pairs; 2 * half <= head_dim
    float direction;  // 1, or -1 for the inverse
};

// WIDTH adjacent elements in one access.
template <class T, int WIDTH>
struct alignas(WIDTH * sizeof(T)) Piece {
    T at[WIDTH];
};
template <int WIDTH>
using Floats = Piece<float, WIDTH>;
template <int WIDTH>
DEVICE Floats<WIDTH> load_piece(const float* from) {
    if (WIDTH == 4) check_aligned16(from);
    return *reinterpret_cast<const Floats<WIDTH>*>(from);
}
template <class T, int WIDTH>
DEVICE void store_piece(T* to, const Floats<WIDTH>& v) {
    Piece<T, WIDTH> piece;
    for (int i = 0; i < WIDTH; i++) piece.at[i] = from_f32<T>(v.at[i]);
    *reinterpret_cast<Piece<T, WIDTH>*>(to) = piece;
}

// Where a head's results go: to a tensor or a cache or both; null for neither.
template <class T>
struct Destination {
    float* out;
    T* cache;
};
template <class T, int WIDTH>
DEVICE void store_result(const Destination<T>& to, int at, const Floats<WIDTH>& v) {
    if (to.out) store_piece(to.out + at, v);
    if (to.cache) store_piece(to.cache + at, v);
}

// What the rows' heads are turned by.
struct Rotation {
    const float* angles;  // [half, 2]: cosine and sine
    int head_dim;
    int half;
    float direction;
};
DEVICE Rotation rotation(const float* const* tables, const u32* rope_idx, u32 position, int head_dim, int half,
                         float direction) {
    if (half == 0) return {nullptr, head_dim, 0, direction};
    const float* table = tables[rope_idx[blockIdx.x]];
    return {table + u64(position) * half * 2, head_dim, half, direction};
}

// Pieces of a head: WIDTH pairs each, then WIDTH elements each of what does not rotate.
template <int WIDTH>
DEVICE int pieces_of_head(const Rotation& by) {
    return (by.head_dim - by.half) / WIDTH;
}
template <int WIDTH, class T>
DEVICE void rotate_piece(const Rotation& by, int piece, const float* head, const Destination<T>& to) {
    int i = piece * WIDTH;
    if (i >= by.half) {
        i += by.half;
        store_result(to, i, load_piece<WIDTH>(head + i));
        return;
    }
    Floats<WIDTH> a = load_piece<WIDTH>(head + i), b = load_piece<WIDTH>(head + i + by.half);
    Floats<WIDTH> angles[2] = {load_piece<WIDTH>(by.angles + 2 * i), load_piece<WIDTH>(by.angles + 2 * i + WIDTH)};
    Floats<WIDTH> first, second;
    for (int j = 0; j < WIDTH; j++) {
        const int c = 2 * j, s = c + 1;
        float cosine = angles[c / WIDTH].at[c % WIDTH], sine = angles[s / WIDTH].at[s % WIDTH] * by.direction;
        first.at[j] = a.at[j] * cosine - b.at[j] * sine;
        second.at[j] = b.at[j] * cosine + a.at[j] * sine;
    }
    store_result(to, i, first);
    store_result(to, i + by.half, second);
}

// This thread's pieces of a row that has `pieces`.
template <class F>
DEVICE void for_pieces(int pieces, F f) {
    for (int piece = blockIdx.y * THREADS + threadIdx.x; piece < pieces; piece += gridDim.y * THREADS) f(piece);
}

template <int WIDTH>
DEVICE void rope_row(const RopeArgs& args, const Rotation& by) {
    const int of_head = pieces_of_head<WIDTH>(by);
    const u64 row = blockIdx.x;
    for_pieces((args.heads0 + args.heads1) * of_head, [&](int piece) {
        int head = piece / of_head;
        bool is_first = head < args.heads0;
        u64 at = is_first ? row * args.heads0 + head : row * args.heads1 + (head - args.heads0);
        const float* x = (is_first ? args.x0 : args.x1) + at * args.head_dim;
        Destination<float> to{(is_first ? args.out0 : args.out1) + at * args.head_dim, nullptr};
        rotate_piece<WIDTH>(by, piece % of_head, x, to);
    });
}

KERNEL(rope, RopeArgs, THREADS) {
    Rotation by = rotation(args.tables, args.rope_idx, args.positions[blockIdx.x], args.head_dim, args.half, args.direction);
    if (args.head_dim % 4 == 0 && args.half % 4 == 0) rope_row<4>(args, by);
    else rope_row<1>(args, by);
}

// Offset in the cache of the first head's vector of a row.
DEVICE u64 place_of_row(const u32* seq_starts, const u32* block_tables, int num_seqs, int max_blocks, u32 position,
                        int kv_heads, int head_dim) {
    int seq = sequence_of_row(seq_starts, num_seqs, blockIdx.x);
    u32 block = block_tables[u64(seq) * max_blocks + position / BLOCK_TOKENS];
    return cache_offset(block, 0, kv_heads, head_dim) + position % BLOCK_TOKENS * u64(head_dim);
}

template <int WIDTH, class T>
DEVICE void rope_kv_row(const RopeKvArgs& args, const Rotation& by, u64 place) {
    const int of_head = pieces_of_head<WIDTH>(by), of_value = args.head_dim / WIDTH;
    const int rotated = (args.heads + args.kv_heads) * of_head;
    const u64 row = blockIdx.x, next_head = BLOCK_TOKENS * args.head_dim;
    for_pieces(rotated + args.kv_heads * of_value, [&](int piece) {
        if (piece >= rotated) {
            int head = (piece - rotated) / of_value, at = (piece - rotated) % of_value * WIDTH;
            const float* v = args.v + (row * args.kv_heads + head) * args.head_dim;
            store_piece(static_cast<T*>(args.v_cache) + place + head * next_head + at, load_piece<WIDTH>(v + at));
            return;
        }
        int head = piece / of_head;
        if (head < args.heads) {
            u64 at = (row * args.heads + head) * args.head_dim;
            rotate_piece<WIDTH>(by, piece % of_head, args.q + at, Destination<T>{args.q_out + at, nullptr});
            return;
        }
        head -= args.heads;
        u64 at = (row * args.kv_heads + head) * args.head_dim;
        Destination<T> to{args.k_out ? args.k_out + at : nullptr, static_cast<T*>(args.k_cache) + place + head * next_head};
        rotate_piece<WIDTH>(by, piece % of_head, args.k + at, to);
    });
}

template <class T>
DEVICE void rope_kv(const RopeKvArgs& args) {
    const u32 position = args.positions[blockIdx.x];
    Rotation by = rotation(args.tables, args.rope_idx, position, args.head_dim, args.half, args.direction);
    u64 place = place_of_row(args.seq_starts, args.block_tables, args.num_seqs, args.max_blocks, position, args.kv_heads,
                             args.head_dim);
    if (args.head_dim % 4 == 0 && args.half % 4 == 0) rope_kv_row<4, T>(args, by, place);
    else rope_kv_row<1, T>(args, by, place);
}

KERNEL(rope_kv_bf16, RopeKvArgs, THREADS) { rope_kv<bf16>(args); }
KERNEL(rope_kv_f16, RopeKvArgs, THREADS) { rope_kv<f16>(args); }
KERNEL(rope_kv_f32, RopeKvArgs, THREADS) { rope_kv<float>(args); }

// Keys and values are heads of which nothing rotates.
template <class T>
DEVICE void kv_write(const KvWriteArgs& args) {
    RopeKvArgs plain{};
    plain.k = args.k, plain.v = args.v, plain.k_cache = args.k_cache, plain.v_cache = args.v_cache;
    plain.positions = args.positions, plain.seq_starts = args.seq_starts, plain.block_tables = args.block_tables;
    plain.num_seqs = args.num_seqs, plain.max_blocks = args.max_blocks;
    plain.kv_heads = args.kv_heads, plain.head_dim = args.head_dim;
    rope_kv<T>(plain);
}

KERNEL(kv_write_bf16, KvWriteArgs, THREADS) { kv_write<bf16>(args); }
KERNEL(kv_write_f16, KvWriteArgs, THREADS) { kv_write<f16>(args); }
KERNEL(kv_write_f32, KvWriteArgs, THREADS) { kv_write<float>(args); }
