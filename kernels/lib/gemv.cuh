// What gemv.cu and gemv_experts.cu share: linear layers for few rows, out = x Wᵀ + bias + residual, in every weight format.
// Bound by the memory that holds the weights, which are read once for all rows.
//
// A block of 8 warps computes FEATURES output features for all rows. Its warps take units of columns in turn
// (weight.cuh) and add up in the end, so each value of x is needed by one warp alone and goes from memory (or L1, where
// blocks before have left it) to registers. Tensor cores multiply: 16 features are the rows of mma.m16n8k16, 8 rows of x
// its columns. Quants are whole numbers and exact in bf16; the product of 32 columns is scaled in f32, and a minimum takes
// the sum of x, a product with ones. x is exact if it is BF16 or F16; of F32 the sum of two bf16 is left, 17 bits. F32
// weights have a kernel without tensor cores, which rounds neither.
//
// The order of a sum depends on cols alone: neither on rows, nor on the variant, nor on which targets share a launch.
#pragma once
#include "mma.cuh"
#include "weight.cuh"

struct GemvTarget {
    Weight weight;          // [n, cols]
    const float* bias;      // [n], or null
    const float* residual;  // [rows, n], or null; may be out
    float* out;             // [rows, n]
};

struct GemvArgs {
    GemvTarget targets[3];  // all of the kernel's format and with the same cols
    const void* x;          // [rows, cols] of x_type, 16-byte aligned rows with zeros from cols to the next multiple of 8
    int num_targets;
    int rows;
    int x_stride;  // elements from row to row
    int x_type;    // ElementType
};

#define WARPS 8
#define THREADS (WARPS * WARP_LANES)

// The target and the first feature of this block.
struct Place {
    int target;
    int first;
};
DEVICE Place place_of_block(const GemvArgs& args, int features) {
    int block = int(blockIdx.x), target = 0;
    while (target + 1 < args.num_targets && block >= ceil_div(args.targets[target].weight.rows, features)) {
        block -= ceil_div(args.targets[target].weight.rows, features);
        target++;
    }
    return {target, block * features};
}

DEVICE void store_output(const GemvTarget& target, int row, int feature, float sum) {
    u64 at = u64(row) * u32(target.weight.rows) + u32(feature);
    if (target.bias) sum += target.bias[feature];
    if (target.residual) sum += target.residual[at];
    target.out[at] = sum;
}

// --- Reading x. Lane (g, c) takes of row g what lane c takes of a weight's block: `load` asks for it, `parts` makes it
// pairs.

#ifndef WARDROBE_HOST
// The 16 or 8 bytes at `from`, or zeros; without a branch, so that all loads of a unit go out before any is waited for. Through no
// read-only path: x may still be written when this kernel comes to the card.
DEVICE Packed<u32> load16_if(bool wanted, const void* from) {
    Packed<u32> r;
    asm("{\n.reg .pred p;\nsetp.ne.u32 p, %5, 0;\nmov.u32 %0, 0;\nmov.u32 %1, 0;\nmov.u32 %2, 0;\nmov.u32 %3, 0;\n"
        "@p ld.global.v4.u32 {%0, %1, %2, %3}, [%4];\n}"
        : "=&r"(r.at[0]), "=&r"(r.at[1]), "=&r"(r.at[2]), "=&r"(r.at[3])
        : "l"(from), "r"(u32(wanted)));
    return r;
}
DEVICE Words2 load8_if(bool wanted, const void* from) {
    Words2 r;
    asm("{\n.reg .pred p;\nsetp.ne.u32 p, %3, 0;\nmov.u32 %0, 0;\nmov.u32 %1, 0;\n@p ld.global.v2.u32 {%0, %1}, [%2];\n}"
        : "=&r"(r.at[0]), "=&r"(r.at[1])
        : "l"(from), "r"(u32(wanted)));
    return r;
}
#else
DEVICE Packed<u32> load16_if(bool wanted, const void* from) {
    return wanted ? load16(static_cast<const u32*>(from)) : Packed<u32>{};
}
DEVICE Words2 load8_if(bool wanted, const void* from) { return wanted ? load8(static_cast<const u8*>(from)) : Words2{}; }
#endif

// Elements of two bytes.
template <class F>
DEVICE Packed<u32> load_halfwords(bool wanted, const u8* block, int c) {
    if constexpr (F::HALVES) {
        Words2 first = load8_if(wanted, block + 2 * first_col<F>(c)),
               second = load8_if(wanted, block + 2 * second_col<F>(c));
        return {{first.at[0], first.at[1], second.at[0], second.at[1]}};
    } else {
        return load16_if(wanted, block + 2 * first_col<F>(c));
    }
}

struct XBf16 {
    static constexpr int PARTS = 1;
    using Piece = Packed<u32>;

    template <class F>
    DEVICE Piece load(bool wanted, const u8* row, int col, int c, int) {
        return load_halfwords<F>(wanted, row + 2 * u64(col), c);
    }
    DEVICE void parts(const Piece& piece, int, u32 (&out)[1][4]) {
        for (int j = 0; j < 4; j++) out[0][j] = piece.at[j];
    }
};

// F32 or F16, as the sum of what bf16 keeps of it and what it keeps of the rest.
struct XWide {
    static constexpr int PARTS = 2;
    struct Piece {
        Packed<u32> words[2];  // of F16 the first alone
    };

    template <class F>
    DEVICE Piece load(bool wanted, const u8* row, int col, int c, int type) {
        if (type == F16) return {{load_halfwords<F>(wanted, row + 2 * u64(col), c), {}}};
        const u8* block = row + 4 * u64(col);
        return {{load16_if(wanted, block + 4 * first_col<F>(c)), load16_if(wanted, block + 4 * second_col<F>(c))}};
    }
    DEVICE void parts(const Piece& piece, int type, u32 (&out)[2][4]) {
        for (int j = 0; j < 4; j++) {
            float first, second;
            if (type == F16) {
                first = f16_to_f32(u16(piece.words[0].at[j]));
                second = f16_to_f32(u16(piece.words[0].at[j] >> 16));
            } else {
                first = bits_to_f32(piece.words[j / 2].at[j % 2 * 2]);
                second = bits_to_f32(piece.words[j / 2].at[j % 2 * 2 + 1]);
            }
            out[0][j] = to_bf16x2(first, second);
            out[1][j] = to_bf16x2(first - first_f32(out[0][j]), second - second_f32(out[0][j]));
        }
    }
};

// --- Products.

DEVICE void multiply_add(float (&d)[4], const u32 (&first)[4], const u32 (&second)[4], const u32 (&x)[4], int half) {
    u32 a[4] = {first[2 * half], second[2 * half], first[2 * half + 1], second[2 * half + 1]};
    u32 b[2] = {x[2 * half], x[2 * half + 1]};
    mma_m16n8k16(d, a, b, bf16{});
}

// Adds a half of a block of 32 columns, 16 features by 8 rows.
template <class F, class X>
DEVICE void add_half(float (&d)[4], const u32 (&w)[2][F::BF16_PARTS][4], const u32 (&x)[X::PARTS][4], int half) {
#pragma unroll
    for (int p = 0; p < F::BF16_PARTS; p++) {
#pragma unroll
        for (int q = 0; q < X::PARTS; q++) multiply_add(d, w[0][p], w[1][p], x[q], half);
    }
}

// The sums of x over a block, as `add_half` would place them for weights of one.
template <class X>
DEVICE void sum_block(float (&d)[4], const u32 (&x)[X::PARTS][4]) {
    const u32 ones[4] = {BF16X2_ONE, BF16X2_ONE, BF16X2_ONE, BF16X2_ONE};
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int q = 0; q < X::PARTS; q++) multiply_add(d, ones, ones, x[q], half);
    }
}

// acc += factor * d, where the factors are those of the lane's two features.
DEVICE void add_scaled(float (&acc)[4], const float (&d)[4], float first, float second) {
    acc[0] += first * d[0];
    acc[1] += first * d[1];
    acc[2] += second * d[2];
    acc[3] += second * d[3];
}

// Adds block b of the pieces of features g and g + 8.
template <class F, class X, int ROW_TILES>
DEVICE void add_block(float (&acc)[ROW_TILES][4], const typename F::Piece (&pieces)[2],
                      const typename F::Scales (&scales)[2], int b, const u32 (&x)[ROW_TILES][X::PARTS][4],
                      const float (&sums)[ROW_TILES][4]) {
    u32 w[2][F::BF16_PARTS][4];
#pragma unroll
    for (int p = 0; p < F::BF16_PARTS; p++) {
        F::pairs(pieces[0], b, p, w[0][p]);
        F::pairs(pieces[1], b, p, w[1][p]);
    }
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++) {
        if constexpr (F::SCALES == 0) {
            add_half<F, X>(acc[t], w, x[t], 0);
            add_half<F, X>(acc[t], w, x[t], 1);
        } else if constexpr (F::SCALES == 1) {
            float d[4] = {};
            add_half<F, X>(d, w, x[t], 0);
            add_half<F, X>(d, w, x[t], 1);
            add_scaled(acc[t], d, F::scale(scales[0], b, 0), F::scale(scales[1], b, 0));
        } else {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float d[4] = {};
                add_half<F, X>(d, w, x[t], half);
                add_scaled(acc[t], d, F::scale(scales[0], b, half), F::scale(scales[1], b, half));
            }
        }
        if constexpr (F::HAS_MINIMUM) add_scaled(acc[t], sums[t], F::minimum(scales[0], b), F::minimum(scales[1], b));
    }
}

// What a lane reads: features g and g + 8 of each 16, row g of each 8.
template <int TILES, int ROW_TILES>
struct LaneRows {
    u32 starts[TILES][2];
    const u8* x[ROW_TILES];
};
// Past the last, the last is read: what comes of it is not stored, and touches nothing else.
DEVICE u32 lane_feature(int first, int i, const Weight& w) { return u32(min(first + 8 * i + lane_idx() / 4, w.rows - 1)); }
template <class F, int TILES, int ROW_TILES>
DEVICE LaneRows<TILES, ROW_TILES> lane_rows(const GemvArgs& args, const Weight& w, int first) {
    LaneRows<TILES, ROW_TILES> rows;
    int g = lane_idx() / 4;
    u64 row_bytes = u64(u32(args.x_stride)) * (args.x_type == F32 ? 4 : 2);
    for (int i = 0; i < 2 * TILES; i++) rows.starts[i / 2][i % 2] = F::start(w, lane_feature(first, i, w));
    for (int t = 0; t < ROW_TILES; t++) {
        rows.x[t] = static_cast<const u8*>(args.x) + u32(min(8 * t + g, args.rows - 1)) * row_bytes;
    }
    return rows;
}

// The sums of this warp's units.
template <class F, class X, int TILES, int ROW_TILES>
DEVICE void add_units(float (&acc)[TILES][ROW_TILES][4], const Weight& w, const LaneRows<TILES, ROW_TILES>& rows,
                      int x_type) {
    constexpr int BLOCKS = F::COLS / 32;
    // Blocks whose x is loaded at once, and whether the next unit is loaded while one is computed: as registers allow.
    constexpr int X_BLOCKS = ROW_TILES > 2 ? 1 : ROW_TILES * X::PARTS > 1 ? 2 : BLOCKS;
    constexpr bool AHEAD = TILES * ROW_TILES <= 2;
    int c = lane_idx() % 4, units = int(units_of<F>(w));
    typename F::Piece next[TILES][2];
    auto load = [&](int unit) {
#pragma unroll
        for (int i = 0; i < 2 * TILES; i++) next[i / 2][i % 2] = F::load(w, rows.starts[i / 2][i % 2], unit, c);
    };
    if (AHEAD && warp_idx() < units) load(warp_idx());
    const u32 zero = wait_for_inputs();
    const u8* x_rows[ROW_TILES];
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++) x_rows[t] = rows.x[t] + zero;
    for (int unit = warp_idx(); unit < units; unit += WARPS) {
        typename X::Piece x[X_BLOCKS][ROW_TILES];
        auto load_x = [&](int first) {
#pragma unroll
            for (int i = 0; i < X_BLOCKS * ROW_TILES; i++) {
                int col = F::COLS * unit + 32 * (first + i / ROW_TILES);
                bool exists = col + (F::HALVES ? 0 : 8 * c) < w.cols;
                x[i / ROW_TILES][i % ROW_TILES] = X::template load<F>(exists, x_rows[i % ROW_TILES], col, c, x_type);
            }
        };
        load_x(0);
        if (!AHEAD) load(unit);
        typename F::Piece pieces[TILES][2];
        typename F::Scales scales[TILES][2];
#pragma unroll
        for (int i = 0; i < 2 * TILES; i++) pieces[i / 2][i % 2] = next[i / 2][i % 2];
        if (AHEAD && unit + WARPS < units) load(unit + WARPS);
#pragma unroll
        for (int i = 0; i < 2 * TILES; i++) scales[i / 2][i % 2] = F::scales(pieces[i / 2][i % 2], unit);
#pragma unroll
        for (int b = 0; b < BLOCKS; b++) {
            if (b > 0 && b % X_BLOCKS == 0) load_x(b);
            u32 columns[ROW_TILES][X::PARTS][4];
            float sums[ROW_TILES][4] = {};
#pragma unroll
            for (int t = 0; t < ROW_TILES; t++) {
                X::parts(x[b % X_BLOCKS][t], x_type, columns[t]);
                if constexpr (F::HAS_MINIMUM) sum_block<X>(sums[t], columns[t]);
            }
#pragma unroll
            for (int i = 0; i < TILES; i++) add_block<F, X, ROW_TILES>(acc[i], pieces[i], scales[i], b, columns, sums);
        }
    }
}

// --- The kernels.

// Each warp's sums of 8 rows; features stand 9 apart, so that writing and reading spread over the banks.
template <int FEATURES>
struct GemvRoom {
    float sums[WARPS][FEATURES][9];
};

// Adds up the warps' sums and stores them.
template <int TILES, int ROW_TILES>
DEVICE void store_outputs(const GemvArgs& args, const GemvTarget& target, int first,
                          const float (&acc)[TILES][ROW_TILES][4]) {
    constexpr int FEATURES = 16 * TILES;
    SHARED(GemvRoom<FEATURES>, room);
    int g = lane_idx() / 4, c = lane_idx() % 4;
#pragma unroll
    for (int t = 0; t < ROW_TILES; t++) {
        if (t > 0) __syncthreads();
#pragma unroll
        for (int i = 0; i < 4 * TILES; i++) {
            room.sums[warp_idx()][16 * (i / 4) + 8 * (i % 4 / 2) + g][2 * c + i % 2] = acc[i / 4][t][i % 4];
        }
        __syncthreads();
#pragma unroll 1
        for (int i = int(threadIdx.x); i < 8 * FEATURES; i += THREADS) {
            int feature = i % FEATURES, row = i / FEATURES;
            float sum = 0.0f;
            for (int warp = 0; warp < WARPS; warp++) sum += room.sums[warp][feature][row];
            if (8 * t + row < args.rows && first + feature < target.weight.rows) {
                store_output(target, 8 * t + row, first + feature, sum);
            }
        }
    }
}

// Bytes of a row in the plane of elements.
DEVICE u32 element_row_bytes(const Weight& w) {
    u32 cols = u32(w.cols);
    if (w.format == WEIGHT_F16 || w.format == WEIGHT_BF16) return (cols + 7) / 8 * 16;
    u32 units = (cols + 127) / 128;
    return w.format == WEIGHT_Q8_0 || w.format == WEIGHT_F8 ? 128 * units : 64 * units;
}

// Asks for the first lines of a block's rows, one a thread: the memory is busy while the kernels ahead end.
template <int FEATURES>
DEVICE void prefetch_rows(const Weight& w, int first) {
    constexpr int LINES = THREADS / FEATURES;
    u32 row = u32(first) + threadIdx.x / LINES, at = threadIdx.x % LINES * LINE_BYTES, row_bytes = element_row_bytes(w);
    if (row < u32(w.rows) && at < row_bytes) prefetch_line(w.elements + u64(row) * row_bytes + at);
}

// 16 * TILES features of a target from `first` on.
template <class F, int TILES, int ROW_TILES>
DEVICE void gemv_features(const GemvArgs& args, const GemvTarget& target, int first) {
    const Weight w = target.weight;
    LaneRows<TILES, ROW_TILES> rows = lane_rows<F, TILES, ROW_TILES>(args, w, first);
    float acc[TILES][ROW_TILES][4] = {};
    if (ROW_TILES > 1 || args.x_type == BF16) {
        add_units<F, XBf16>(acc, w, rows, BF16);
    } else {
        if constexpr (ROW_TILES == 1) add_units<F, XWide>(acc, w, rows, args.x_type);
    }
    if constexpr (F::HAS_ROW_SCALE) {
#pragma unroll
        for (int i = 0; i < 2 * TILES; i++) {
            float scale = F::row_scale(w, lane_feature(first, i, w));
#pragma unroll
            for (int t = 0; t < ROW_TILES; t++) {
                acc[i / 2][t][i % 2 * 2] *= scale;
                acc[i / 2][t][i % 2 * 2 + 1] *= scale;
            }
        }
    }
    store_outputs<TILES, ROW_TILES>(args, target, first, acc);
}

// --- F32 weights: a warp's lanes take four columns each.

#define F32_FEATURES 4
#define F32_ROWS 8
#define F32_SUMS (F32_FEATURES * F32_ROWS)

// Leaves the sum over the warp of its lanes' v[i] in v[0] of lane i: each step halves both the lanes of a sum and its sums.
DEVICE void scatter_sums(float (&v)[F32_SUMS]) {
#pragma unroll
    for (int half = F32_SUMS / 2; half > 0; half /= 2) {
        bool is_upper = (lane_idx() & half) != 0;
#pragma unroll
        for (int i = 0; i < half; i++) {
            float keep = is_upper ? v[i + half] : v[i], give = is_upper ? v[i] : v[i + half];
            v[i] = keep + __shfl_xor_sync(FULL_WARP, give, half);
        }
    }
}

struct F32Room {
    float sums[WARPS][F32_SUMS];
};

// Four features of a target from `first` on.
DEVICE void gemv_f32_features(const GemvArgs& args, const GemvTarget& target, int first) {
    SHARED(F32Room, room);
    const Weight& weight = target.weight;
    u64 padded = u64((weight.cols + 7) / 8 * 8);
    float sums[F32_SUMS] = {};
    for (int col = int(threadIdx.x) * 4; col < weight.cols; col += THREADS * 4) {
        float w[F32_FEATURES][4];
#pragma unroll
        for (int f = 0; f < F32_FEATURES; f++) {
            u64 row = u64(min(first + f, weight.rows - 1));
            Packed<u32> words = load16_once(weight.elements + 4 * (row * padded + u32(col)));
            for (int i = 0; i < 4; i++) w[f][i] = bits_to_f32(words.at[i]);
        }
#pragma unroll
        for (int r = 0; r < F32_ROWS; r++) {
            if (r >= args.rows) break;
            float x[4] = {};
            u64 at = u64(r) * u32(args.x_stride) + u32(col);
            if (args.x_type == F32) {
                load_up_to4(x, static_cast<const float*>(args.x) + at, weight.cols - col);
            } else {
                for (int i = 0; i < 4; i++) {
                    if (col + i < weight.cols) x[i] = load_element(args.x, at + u32(i), args.x_type);
                }
            }
#pragma unroll
            for (int f = 0; f < F32_FEATURES; f++) {
                for (int i = 0; i < 4; i++) sums[f * F32_ROWS + r] += w[f][i] * x[i];
            }
        }
    }
    scatter_sums(sums);
    room.sums[warp_idx()][lane_idx()] = sums[0];
    __syncthreads();
    int feature = int(threadIdx.x) / F32_ROWS, row = int(threadIdx.x) % F32_ROWS;
    if (threadIdx.x >= F32_SUMS || row >= args.rows || first + feature >= weight.rows) return;
    float sum = 0.0f;
    for (int warp = 0; warp < WARPS; warp++) sum += room.sums[warp][threadIdx.x];
    store_output(target, row, first + feature, sum);
}

// All formats, or one: -DGEMV_FORMAT=number (WeightFormat), which takes an eighth of the time to compile.
#ifndef GEMV_FORMAT
#define GEMV_FORMAT -1
#endif
#define COMPILES(format) (GEMV_FORMAT < 0 || GEMV_FORMAT == format)
