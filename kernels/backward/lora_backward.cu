// The gradient of a low-rank update, out += scale (x Aᵀ) Bᵀ (Hu et al., arXiv 2106.09685), of one adapter over all rows:
//     low_a = scale x Aᵀ           [rows, rank]    shrink
//     low_b = scale d_out B        [rows, rank]    shrink
//     d_A  += low_bᵀ x             [rank, in]      outer
//     d_Bᵀ += low_aᵀ d_out         [rank, out]     outer
//     d_x  += low_b A              [rows, in]      expand
// Products are f32 throughout and in one order for given shapes and parts. One tile product serves all: a block of 256
// threads makes 4096 sums, WIDE by NARROW of them, a thread 4 by 4; it goes through the summed dimension 16 at a time, with
// the next 16 on their way in registers. The narrow side is the rank (16, 32 or 64 at a time), so that x and d_out are read
// once for ranks up to 64.
//
// Up to rank 32 or so this is bound by the reading of x and d_out. Beyond, the f32 units are: tensor cores (tf32, or three
// bf16 products for f32's accuracy) would be several times as fast there, and change the sums' last bits.
//
// Launch, block 256; NARROW is 16, 32 or 64, the smallest that is not below the rank, else 64; WIDE = 4096 / NARROW:
//     lora_shrink_NARROW: grid (ceil(rows / WIDE), ceil(rank / NARROW), parts); parts = ceil(cols / cols_per_part)
//     lora_outer_NARROW: grid (ceil(cols / WIDE), ceil(rank / NARROW), parts); parts = ceil(rows / rows_per_part)
//     lora_expand: grid (ceil(rows / 64), ceil(cols / 64))
//     lora_sum: grid (ceil(len / 1024))
// With one part, shrink writes `low` and outer adds to `sum`. With more, each writes its parts into a workspace of [parts,
// rows, rank] or [parts, rank, cols] floats, and lora_sum adds them up in order: len = rows * rank, written; or len = rank *
// cols, added. Parts are for grids too small for a GPU. Of n columns or rows to be split, where the grid has `tiles` blocks
// without parts:
//     wanted = min(ceil(512 / tiles), max(1, n / 128)); per_part = ceil(n / wanted), rounded up to a multiple of 16
#include "../lib/kernel.cuh"

#define THREADS 256
// Of the summed dimension.
#define STEP 16
// Keeps rows of shared memory 16-byte aligned, and 16 of them, stored a column at a time, apart in their banks.
#define PAD 4

struct LoraShrinkArgs {
    const void* x;        // [rows, cols] of x_type
    const float* factor;  // [cols, rank]
    float* low;           // [parts, rows, rank], written
    int x_type;
    int rows, cols, rank;
    int cols_per_part;    // a multiple of 16
    float scale;
};

struct LoraOuterArgs {
    const float* low;  // [rows, rank]
    const void* x;     // [rows, cols] of x_type
    float* sum;        // [parts, rank, cols], written; with `accumulate` [rank, cols], added to
    int x_type;
    int rows, cols, rank;
    int rows_per_part;  // a multiple of 16
    int accumulate;     // there is one part only
};

struct LoraExpandArgs {
    const float* low;     // [rows, rank]
    const float* panels;  // A as [cols, rank], in panels of 16 columns (`LoraFactors::pack_b`)
    float* d_x;           // [rows, cols], added to
    int rows, cols, rank;
};

struct LoraSumArgs {
    const float* parts;  // [num_parts, len]
    float* out;          // [len], written or added to
    u64 len;
    int num_parts;
    int accumulate;
};

// Whether rows of x can be read four elements at once.
DEVICE bool has_vectors(const void* x, int row_len, int type) { return type == F32 && row_len % 4 == 0 && is_aligned16(x); }
// `count` of four elements from i on, the others being 0. With VECTORS, which is decided once for a block so that loads need
// no branches, these are all or none.
template <bool VECTORS>
DEVICE void load_quad(float (&v)[4], const void* from, u64 i, int count, int type) {
    if (VECTORS) {
        Packed<float> quad{};
        if (count > 0) quad = load16(static_cast<const float*>(from) + i);
        for (int j = 0; j < 4; j++) v[j] = quad.at[j];
    } else {
        for (int j = 0; j < 4; j++) v[j] = j < count ? load_element(from, i + j, type) : 0.0f;
    }
}

// Operands of a product, of which the summed dimension ends at `end`. `wide_quad` gives four elements of the wide one, along
// the summed dimension k if SUMS_ALONG_ROWS, else along the wide dimension; `narrow_element` one of the other. Beyond an end
// they are 0.
struct ShrinkOperands {
    static constexpr bool SUMS_ALONG_ROWS = true;
    const LoraShrinkArgs& args;
    int end;
};
template <bool VECTORS>
DEVICE void wide_quad(float (&v)[4], const ShrinkOperands& of, int k, int row) {
    load_quad<VECTORS>(v, of.args.x, u64(row) * of.args.cols + k, row < of.args.rows ? of.end - k : 0, of.args.x_type);
}
DEVICE float narrow_element(const ShrinkOperands& of, int k, int r) {
    return k < of.end && r < of.args.rank ? of.args.factor[u64(k) * of.args.rank + r] : 0.0f;
}

struct OuterOperands {
    static constexpr bool SUMS_ALONG_ROWS = false;
    const LoraOuterArgs& args;
    int end;
};
template <bool VECTORS>
DEVICE void wide_quad(float (&v)[4], const OuterOperands& of, int row, int col) {
    load_quad<VECTORS>(v, of.args.x, u64(row) * of.args.cols + col, row < of.end ? of.args.cols - col : 0, of.args.x_type);
}
DEVICE float narrow_element(const OuterOperands& of, int row, int r) {
    return row < of.end && r < of.args.rank ? of.args.low[u64(row) * of.args.rank + r] : 0.0f;
}

struct ExpandOperands {
    static constexpr bool SUMS_ALONG_ROWS = true;
    const LoraExpandArgs& args;
    int end;
};
template <bool VECTORS>
DEVICE void wide_quad(float (&v)[4], const ExpandOperands& of, int r, int row) {
    load_quad<VECTORS>(v, of.args.low, u64(row) * of.args.rank + r, row < of.args.rows ? of.end - r : 0, F32);
}
DEVICE float narrow_element(const ExpandOperands& of, int r, int col) {
    if (r >= of.end || col >= of.args.cols) return 0.0f;
    const int panel = col & ~15;
    const int width = min(16, of.args.cols - panel);
    return of.args.panels[u64(panel) * of.args.rank + r * width + (col - panel)];
}

// Where a block's tile lies, and the thread's sums in it.
template <int NARROW>
struct LoraTile {
    static constexpr int WIDE = 4096 / NARROW;
    int wide, narrow;
};
template <int NARROW>
DEVICE LoraTile<NARROW> block_tile() {
    return {int(blockIdx.x) * LoraTile<NARROW>::WIDE, int(blockIdx.y) * NARROW};
}
template <int NARROW>
DEVICE int first_wide() {
    return int(threadIdx.x) / (NARROW / 4) * 4;
}
template <int NARROW>
DEVICE int first_narrow() {
    return int(threadIdx.x) % (NARROW / 4) * 4;
}

// Two steps of operands: one is read while the next is written.
template <int NARROW>
struct LoraStages {
    float wide[2][STEP][LoraTile<NARROW>::WIDE + PAD];
    float narrow[2][STEP][NARROW];
};

// A thread's share of a step, on its way.
template <int NARROW>
struct LoraShare {
    static constexpr int QUADS = LoraTile<NARROW>::WIDE * STEP / 4 / THREADS;
    static constexpr int ELEMENTS = NARROW * STEP / THREADS;
    float wide[QUADS][4];
    float narrow[ELEMENTS];
};

// Place in a step of the thread's quad i.
struct QuadPlace {
    int k, wide;
};
template <bool SUMS_ALONG_ROWS, int WIDE>
DEVICE QuadPlace quad_place(int i) {
    if (SUMS_ALONG_ROWS) {
        // A warp takes 16 rows and 8 of k: whole sectors of memory, and 32 banks when it stores.
        const int item = warp_idx() + i * (THREADS / WARP_LANES), lane = lane_idx();
        return {item % 2 * 8 + lane / 16 * 4, item / 2 * 16 + lane % 16};
    }
    const int quad = int(threadIdx.x) + i * THREADS;
    return {quad / (WIDE / 4), quad % (WIDE / 4) * 4};
}

template <bool VECTORS, int NARROW, class Operands>
DEVICE void fetch(LoraShare<NARROW>& share, const Operands& of, LoraTile<NARROW> tile, int k) {
#pragma unroll
    for (int i = 0; i < share.QUADS; i++) {
        const QuadPlace at = quad_place<Operands::SUMS_ALONG_ROWS, tile.WIDE>(i);
        wide_quad<VECTORS>(share.wide[i], of, k + at.k, tile.wide + at.wide);
    }
#pragma unroll
    for (int i = 0; i < share.ELEMENTS; i++) {
        const int element = int(threadIdx.x) + i * THREADS;
        share.narrow[i] = narrow_element(of, k + element / NARROW, tile.narrow + element % NARROW);
    }
}

template <bool SUMS_ALONG_ROWS, int NARROW>
DEVICE void put(const LoraShare<NARROW>& share, LoraStages<NARROW>& stages, int stage) {
#pragma unroll
    for (int i = 0; i < share.QUADS; i++) {
        const QuadPlace at = quad_place<SUMS_ALONG_ROWS, LoraTile<NARROW>::WIDE>(i);
        const float(&v)[4] = share.wide[i];
        if (SUMS_ALONG_ROWS) {
            for (int j = 0; j < 4; j++) stages.wide[stage][at.k + j][at.wide] = v[j];
        } else {
            store16(&stages.wide[stage][at.k][at.wide], Packed<float>{{v[0], v[1], v[2], v[3]}});
        }
    }
#pragma unroll
    for (int i = 0; i < share.ELEMENTS; i++) {
        const int element = int(threadIdx.x) + i * THREADS;
        stages.narrow[stage][element / NARROW][element % NARROW] = share.narrow[i];
    }
}

// sums[n][w] += what one step gives.
template <int NARROW>
DEVICE void add_step(float (&sums)[4][4], const LoraStages<NARROW>& stages, int stage) {
#pragma unroll
    for (int k = 0; k < STEP; k++) {
        const Packed<float> wide = load16(&stages.wide[stage][k][first_wide<NARROW>()]);
        const Packed<float> narrow = load16(&stages.narrow[stage][k][first_narrow<NARROW>()]);
        for (int n = 0; n < 4; n++) {
            for (int w = 0; w < 4; w++) sums[n][w] += narrow.at[n] * wide.at[w];
        }
    }
}

// sums[n][w] = Σ over k from `from` to the operands' end, for the thread's 4 by 4 places in the tile.
template <bool VECTORS, int NARROW, class Operands>
DEVICE void sum_tile(float (&sums)[4][4], const Operands& of, LoraTile<NARROW> tile, int from, LoraStages<NARROW>& stages) {
    LoraShare<NARROW> share;
    fetch<VECTORS>(share, of, tile, from);
    put<Operands::SUMS_ALONG_ROWS>(share, stages, 0);
    for (int k = from, stage = 0; k < of.end; k += STEP, stage ^= 1) {
        // The step is here, and nobody reads the one before.
        __syncthreads();
        // After the last step come zeros, which nobody reads: under a condition the compiler would load after the sums.
        fetch<VECTORS>(share, of, tile, k + STEP);
        add_step(sums, stages, stage);
        put<Operands::SUMS_ALONG_ROWS>(share, stages, stage ^ 1);
    }
}
template <int NARROW, class Operands>
DEVICE void multiply(float (&sums)[4][4], const Operands& of, LoraTile<NARROW> tile, int from, bool vectors) {
    SHARED(LoraStages<NARROW>, stages);
    if (vectors) sum_tile<true>(sums, of, tile, from, stages);
    else sum_tile<false>(sums, of, tile, from, stages);
}

template <int NARROW>
DEVICE void shrink(const LoraShrinkArgs& args) {
    const LoraTile<NARROW> tile = block_tile<NARROW>();
    const int from = int(blockIdx.z) * args.cols_per_part;
    float sums[4][4] = {};
    const ShrinkOperands operands{args, min(from + args.cols_per_part, args.cols)};
    multiply(sums, operands, tile, from, has_vectors(args.x, args.cols, args.x_type));
    const int r = tile.narrow + first_narrow<NARROW>();
    float* low = args.low + u64(blockIdx.z) * args.rows * args.rank;
    for (int w = 0; w < 4; w++) {
        const int row = tile.wide + first_wide<NARROW>() + w;
        float quad[4];
        for (int n = 0; n < 4; n++) quad[n] = args.scale * sums[n][w];
        if (row < args.rows && r < args.rank) store_up_to4(low + u64(row) * args.rank + r, quad, args.rank - r);
    }
}
KERNEL(lora_shrink_16, LoraShrinkArgs, THREADS) { shrink<16>(args); }
KERNEL(lora_shrink_32, LoraShrinkArgs, THREADS) { shrink<32>(args); }
KERNEL(lora_shrink_64, LoraShrinkArgs, THREADS) { shrink<64>(args); }

template <int NARROW>
DEVICE void outer(const LoraOuterArgs& args) {
    const LoraTile<NARROW> tile = block_tile<NARROW>();
    const int from = int(blockIdx.z) * args.rows_per_part;
    float sums[4][4] = {};
    const OuterOperands operands{args, min(from + args.rows_per_part, args.rows)};
    multiply(sums, operands, tile, from, has_vectors(args.x, args.cols, args.x_type));
    const int col = tile.wide + first_wide<NARROW>();
    float* sum = args.sum + u64(blockIdx.z) * args.rank * args.cols;
    for (int n = 0; n < 4; n++) {
        const int r = tile.narrow + first_narrow<NARROW>() + n;
        if (r >= args.rank || col >= args.cols) continue;
        float* to = sum + u64(r) * args.cols + col;
        float quad[4] = {};
        if (args.accumulate) load_up_to4(quad, to, args.cols - col);
        for (int w = 0; w < 4; w++) quad[w] += sums[n][w];
        store_up_to4(to, quad, args.cols - col);
    }
}
KERNEL(lora_outer_16, LoraOuterArgs, THREADS) { outer<16>(args); }
KERNEL(lora_outer_32, LoraOuterArgs, THREADS) { outer<32>(args); }
KERNEL(lora_outer_64, LoraOuterArgs, THREADS) { outer<64>(args); }

KERNEL(lora_expand, LoraExpandArgs, THREADS) {
    const LoraTile<64> tile = block_tile<64>();
    float sums[4][4] = {};
    multiply(sums, ExpandOperands{args, args.rank}, tile, 0, has_vectors(args.low, args.rank, F32));
    const int col = tile.narrow + first_narrow<64>();
    for (int w = 0; w < 4; w++) {
        const int row = tile.wide + first_wide<64>() + w;
        if (row >= args.rows || col >= args.cols) continue;
        float* to = args.d_x + u64(row) * args.cols + col;
        float quad[4];
        load_up_to4(quad, to, args.cols - col);
        for (int n = 0; n < 4; n++) quad[n] += sums[n][w];
        store_up_to4(to, quad, args.cols - col);
    }
}

KERNEL(lora_sum, LoraSumArgs, THREADS) {
    const u64 at = 4 * (u64(blockIdx.x) * THREADS + threadIdx.x);
    const i64 count = i64(args.len) - i64(at);
    if (count <= 0) return;
    float out[4] = {}, sum[4] = {};
    if (args.accumulate) load_up_to4(out, args.out + at, count);
    for (int part = 0; part < args.num_parts; part++) {
        float v[4];
        load_up_to4(v, args.parts + part * args.len + at, count);
        for (int i = 0; i < 4; i++) sum[i] += v[i];
    }
    for (int i = 0; i < 4; i++) out[i] += sum[i];
    store_up_to4(args.out + at, out, count);
}
