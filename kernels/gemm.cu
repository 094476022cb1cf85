// Products of many rows on tensor cores: out = x wᵀ + bias + residual, or x w (`nn`, for gradients), of BF16 or F16 with
// F32 sums.
//
// A block computes a tile of the output; x and w come through shared memory, 32 elements of the sum at a time, by
// asynchronous copies three steps ahead. 16-byte chunks are swizzled so that ldmatrix and copies meet no bank twice. Each
// element's sum goes through mma.m16n8k16 in the order of k, all of it in one block: it depends neither on the tile nor on
// other rows. Blocks go down 8 tiles of rows before the next columns, so that both operands come from the L2 cache.
//
// Entry points: gemm_T_ROWSxCOLS and gemm_nn_T_ROWSxCOLS, T bf16 or f16:
//   128x128  block 256, 65536 bytes of dynamic shared memory (more than 48 KiB: the launch has to ask for them)
//   64x64    block 128, 32768 bytes
//   32x64    block 128, 24576 bytes: for few rows
// Launch: grid ceil(rows / ROWS) * ceil(n / COLS).
#include "lib/mma.cuh"

struct GemmArgs {
    const void* x;          // [rows, k], 16-byte aligned rows, zeros from k to the next multiple of 8
    const void* w;          // [n, k] as x is; nn: [k, n], 16-byte aligned rows of at least n rounded up to 8
    const float* bias;      // [n], or null
    const float* residual;  // [rows, n] with the rows' stride of out, or null; may be out: then the product is added to it
    void* out;              // [rows, n] of out_type
    int rows;
    int n;
    int k;
    int x_stride;  // elements from row to row, a multiple of 8
    int w_stride;  // likewise
    int out_stride;
    int out_type;  // ElementType
    int unused;
};

#define STEP 32
#define STAGES 4
#define CHUNK 8  // elements of 16 bytes

// How a tile is cut: warps side by side in both directions, and what each computes.
template <class T_, int ROWS_, int COLS_, int WARPS_DOWN_, int WARPS_ACROSS_, bool NN_>
struct Tiling {
    using T = T_;
    static constexpr int ROWS = ROWS_, COLS = COLS_, WARPS_ACROSS = WARPS_ACROSS_;
    static constexpr bool NN = NN_;
    static constexpr int THREADS = WARPS_DOWN_ * WARPS_ACROSS_ * WARP_LANES;
    static constexpr int WARP_ROWS = ROWS / WARPS_DOWN_, WARP_COLS = COLS / WARPS_ACROSS_;
    static constexpr int ROW_TILES = WARP_ROWS / 16, COL_TILES = WARP_COLS / 8;
    struct Stage {
        T x[ROWS * STEP];
        T w[COLS * STEP];
    };
    static_assert(sizeof(Stage) * STAGES >= sizeof(float) * ROWS * COLS, "the sums take the operands' place");
};

// Where chunk `chunk` of row `row` stands in a tile with rows of 32 elements: two rows in 128 bytes, and eight rows' chunks
// in all banks.
DEVICE int narrow_at(int row, int chunk) { return row * STEP + (chunk ^ (row >> 1 & 3)) * CHUNK; }
// The same in a tile with rows of at least 64 elements.
template <int COLS>
DEVICE int wide_at(int row, int chunk) {
    return row * COLS + (chunk ^ (row & 7)) * CHUNK;
}

// Begins the copies of step `step` of both operands. What lies outside becomes zeros.
template <class S>
DEVICE void fetch(typename S::Stage& stage, const GemmArgs& args, int first_row, int first_col, int step) {
    using T = typename S::T;
    const T* x = static_cast<const T*>(args.x);
    const T* w = static_cast<const T*>(args.w);
#pragma unroll
    for (int j = 0; j < S::ROWS * STEP / CHUNK / S::THREADS; j++) {
        int i = j * S::THREADS + int(threadIdx.x), row = i / (STEP / CHUNK), chunk = i % (STEP / CHUNK),
            k = step * STEP + chunk * CHUNK;
        bool exists = first_row + row < args.rows && k < args.k;
        const T* from = exists ? x + u64(first_row + row) * u32(args.x_stride) + u32(k) : x;
        cp_async16(&stage.x[narrow_at(row, chunk)], from, exists ? 16 : 0);
    }
#pragma unroll
    for (int j = 0; j < S::COLS * STEP / CHUNK / S::THREADS; j++) {
        constexpr int ROW_CHUNKS = (S::NN ? S::COLS : STEP) / CHUNK;
        int i = j * S::THREADS + int(threadIdx.x), row = i / ROW_CHUNKS, chunk = i % ROW_CHUNKS;
        int k = step * STEP + (S::NN ? row : chunk * CHUNK), col = first_col + (S::NN ? chunk * CHUNK : row);
        bool exists = col < args.n && k < args.k;
        const T* from = exists ? w + u64(S::NN ? k : col) * u32(args.w_stride) + u32(S::NN ? col : k) : w;
        cp_async16(&stage.w[S::NN ? wide_at<S::COLS>(row, chunk) : narrow_at(row, chunk)], from, exists ? 16 : 0);
    }
}

// A warp's operands of 16 elements of the sum.
template <class S>
struct Fragments {
    u32 x[S::ROW_TILES][4];
    u32 w[S::COL_TILES / 2][4];
};
template <class S>
DEVICE void load_fragments(Fragments<S>& f, const typename S::Stage& stage, int row, int col, int half) {
    int lane = lane_idx();
#pragma unroll
    for (int i = 0; i < S::ROW_TILES; i++)
        ldmatrix_x4(f.x[i], &stage.x[narrow_at(row + 16 * i + lane % 16, 2 * half + lane / 16)]);
#pragma unroll
    for (int i = 0; i < S::COL_TILES / 2; i++) {
        if constexpr (S::NN) {
            int k = 16 * half + lane % 16, chunk = (col + 16 * i) / CHUNK + lane / 16;
            ldmatrix_x4_transposed(f.w[i], &stage.w[wide_at<S::COLS>(k, chunk)]);
        } else {
            ldmatrix_x4(f.w[i], &stage.w[narrow_at(col + 16 * i + lane / 16 * 8 + lane % 8, 2 * half + lane / 8 % 2)]);
        }
    }
}
template <class S>
DEVICE void multiply(float (&acc)[S::ROW_TILES][S::COL_TILES][4], const Fragments<S>& f) {
#pragma unroll
    for (int i = 0; i < S::ROW_TILES; i++) {
#pragma unroll
        for (int j = 0; j < S::COL_TILES; j++) {
            u32 w[2] = {f.w[j / 2][j % 2 * 2], f.w[j / 2][j % 2 * 2 + 1]};
            mma_m16n8k16(acc[i][j], f.x[i], w, typename S::T{});
        }
    }
}

struct alignas(8) FloatPair {
    float at[2];
};
// Where column `col` of row `row` stands in a tile of sums: lanes of a warp write pairs of 4 rows to all banks.
template <class S>
DEVICE int sum_at(int row, int col) {
    return row * S::COLS + (col ^ (row & 3) * 8);
}
// Adds what else is added to the tile and stores it, four elements at a time.
template <class S>
DEVICE void store_tile(const GemmArgs& args, const float* sums, int first_row, int first_col) {
#pragma unroll 1
    for (int i = int(threadIdx.x); i < S::ROWS * S::COLS / 4; i += S::THREADS) {
        int row = i / (S::COLS / 4), col = i % (S::COLS / 4) * 4, left = args.n - (first_col + col);
        if (first_row + row >= args.rows || left <= 0) continue;
        Packed<float> sum = load16(&sums[sum_at<S>(row, col)]);
        float v[4], other[4];
        for (int e = 0; e < 4; e++) v[e] = sum.at[e];
        u64 at = u64(first_row + row) * u32(args.out_stride) + u32(first_col + col);
        if (args.bias) {
            load_up_to4(other, args.bias + first_col + col, left);
            for (int e = 0; e < 4; e++) v[e] += other[e];
        }
        if (args.residual) {
            load_up_to4(other, args.residual + at, left);
            for (int e = 0; e < 4; e++) v[e] += other[e];
        }
        if (args.out_type == F32) {
            store_up_to4(static_cast<float*>(args.out) + at, v, left);
        } else {
            for (int e = 0; e < min(4, left); e++) store_element(args.out, at + u32(e), v[e], args.out_type);
        }
    }
}

// The first row and column of this block's tile.
template <class S>
DEVICE void place(const GemmArgs& args, int& row, int& col) {
    constexpr int DOWN = 8;
    int row_tiles = ceil_div(args.rows, S::ROWS), per_group = DOWN * ceil_div(args.n, S::COLS);
    int first = int(blockIdx.x) / per_group * DOWN, in_group = int(blockIdx.x) % per_group,
        down = min(DOWN, row_tiles - first);
    row = (first + in_group % down) * S::ROWS;
    col = in_group / down * S::COLS;
}

template <class S>
DEVICE void gemm(const GemmArgs& args) {
    DYNAMIC_SHARED(memory);
    typename S::Stage* stages = reinterpret_cast<typename S::Stage*>(memory);
    int first_row, first_col, steps = ceil_div(args.k, STEP);
    place<S>(args, first_row, first_col);
    int warp_row = warp_idx() / S::WARPS_ACROSS * S::WARP_ROWS, warp_col = warp_idx() % S::WARPS_ACROSS * S::WARP_COLS;
    float acc[S::ROW_TILES][S::COL_TILES][4] = {};
    for (int step = 0; step < STAGES - 1; step++) {
        if (step < steps) fetch<S>(stages[step], args, first_row, first_col, step);
        cp_async_commit();
    }
    for (int step = 0; step < steps; step++) {
        // This step has arrived, and all are done with the last one, whose place is free.
        cp_async_wait<STAGES - 2>();
        __syncthreads();
        int next = step + STAGES - 1;
        if (next < steps) fetch<S>(stages[next % STAGES], args, first_row, first_col, next);
        cp_async_commit();
        Fragments<S> first, second;
        load_fragments(first, stages[step % STAGES], warp_row, warp_col, 0);
        load_fragments(second, stages[step % STAGES], warp_row, warp_col, 1);
        multiply<S>(acc, first);
        multiply<S>(acc, second);
    }
    float* sums = reinterpret_cast<float*>(memory);
    int row = warp_row + lane_idx() / 4, col = warp_col + lane_idx() % 4 * 2;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < S::ROW_TILES * S::COL_TILES * 2; i++) {
        const float (&d)[4] = acc[i / 2 / S::COL_TILES][i / 2 % S::COL_TILES];
        int at = sum_at<S>(row + i / 2 / S::COL_TILES * 16 + i % 2 * 8, col + i / 2 % S::COL_TILES * 8);
        *reinterpret_cast<FloatPair*>(&sums[at]) = {{d[i % 2 * 2], d[i % 2 * 2 + 1]}};
    }
    __syncthreads();
    store_tile<S>(args, sums, first_row, first_col);
}

#define GEMM(name, T, NN)                                                                                   \
    KERNEL_RESIDENT(gemm_##name##_128x128, GemmArgs, 256, 2) { gemm<Tiling<T, 128, 128, 2, 4, NN>>(args); } \
    KERNEL_RESIDENT(gemm_##name##_64x64, GemmArgs, 128, 4) { gemm<Tiling<T, 64, 64, 2, 2, NN>>(args); }     \
    KERNEL_RESIDENT(gemm_##name##_32x64, GemmArgs, 128, 4) { gemm<Tiling<T, 32, 64, 1, 4, NN>>(args); }
GEMM(bf16, bf16, false)
GEMM(f16, f16, false)
GEMM(nn_bf16, bf16, true)
GEMM(nn_f16, f16, true)
