// Products of many rows in F32 without tensor cores: out = x wᵀ + bias + residual, or x w (`nn`, for gradients). For F32
// weights, of which nothing is rounded away.
//
// A block computes a tile of the output, each thread 8 rows by 8 or 4 columns of it, 16 elements of the sum at a time:
// while one step is multiplied out of shared memory the next is on its way to registers. Each element's sum is one chain of
// fused multiply-adds in the order of k, whatever the tile.
//
// Entry points: gemm_f32_128x128 and gemm_f32_nn_128x128, block 256; gemm_f32_64x64 and gemm_f32_nn_64x64, block 128.
// Launch: grid ceil(rows / ROWS) * ceil(n / COLS), no dynamic shared memory.
#include "lib/kernel.cuh"

struct GemmF32Args {
    const float* x;         // [rows, k]
    const float* w;         // [n, k]; nn: [k, n]
    const float* bias;      // [n], or null
    const float* residual;  // [rows, n] with the rows' stride of out, or null; may be out: then the product is added to it
    float* out;             // [rows, n]
    int rows;
    int n;
    int k;
    int x_stride;  // elements from row to row; loads are widest if rows are 16-byte aligned
    int w_stride;  // likewise
    int out_stride;
};

#define STEP 16

// A tile, of which a thread has groups of four rows and of four columns, as far apart as there are groups: so neighbours
// read neighbouring words.
template <int ROWS_, int COLS_, int ROW_GROUPS_, int COL_GROUPS_, bool NN_>
struct Tiling {
    static constexpr int ROWS = ROWS_, COLS = COLS_, ROW_GROUPS = ROW_GROUPS_, COL_GROUPS = COL_GROUPS_;
    static constexpr bool NN = NN_;
    static constexpr int ACROSS = COLS / COL_GROUPS / 4, THREADS = ROWS / ROW_GROUPS / 4 * ACROSS;
    static constexpr int X_LOADS = ROWS * STEP / 4 / THREADS, W_LOADS = COLS * STEP / 4 / THREADS;
    // Both operands with the sum's elements outermost; four more, so that transposed writes spread over the banks.
    struct Stage {
        float x[STEP][ROWS + 4];
        float w[STEP][COLS + 4];
    };
    struct Room {
        Stage stages[2];
    };
};

// What a thread has fetched of a step.
template <class S>
struct Fetched {
    float x[S::X_LOADS][4];
    float w[S::W_LOADS][4];
};

// Four elements of a row of a matrix [rows, cols]; zeros outside.
DEVICE void load_four(float (&v)[4], const float* from, int stride, int row, int col, int rows, int cols) {
    load_up_to4(v, from + u64(u32(row < rows ? row : 0)) * u32(stride) + u32(col), row < rows ? cols - col : 0);
}

template <class S>
DEVICE void fetch(Fetched<S>& f, const GemmF32Args& args, int first_row, int first_col, int step) {
#pragma unroll
    for (int j = 0; j < S::X_LOADS; j++) {
        int i = j * S::THREADS + int(threadIdx.x);
        load_four(f.x[j], args.x, args.x_stride, first_row + i / (STEP / 4), step * STEP + i % (STEP / 4) * 4, args.rows,
                  args.k);
    }
#pragma unroll
    for (int j = 0; j < S::W_LOADS; j++) {
        int i = j * S::THREADS + int(threadIdx.x);
        if (S::NN) {
            int k = step * STEP + i / (S::COLS / 4), col = first_col + i % (S::COLS / 4) * 4;
            load_four(f.w[j], args.w, args.w_stride, k, col, args.k, args.n);
        } else {
            load_four(f.w[j], args.w, args.w_stride, first_col + i / (STEP / 4), step * STEP + i % (STEP / 4) * 4, args.n,
                      args.k);
        }
    }
}

template <class S>
DEVICE void put(typename S::Stage& stage, const Fetched<S>& f) {
#pragma unroll
    for (int j = 0; j < S::X_LOADS; j++) {
        int i = j * S::THREADS + int(threadIdx.x);
        for (int e = 0; e < 4; e++) stage.x[i % (STEP / 4) * 4 + e][i / (STEP / 4)] = f.x[j][e];
    }
#pragma unroll
    for (int j = 0; j < S::W_LOADS; j++) {
        int i = j * S::THREADS + int(threadIdx.x);
        if (S::NN) {
            const float (&v)[4] = f.w[j];
            store16(&stage.w[i / (S::COLS / 4)][i % (S::COLS / 4) * 4], Packed<float>{{v[0], v[1], v[2], v[3]}});
        } else {
            for (int e = 0; e < 4; e++) stage.w[i % (STEP / 4) * 4 + e][i / (STEP / 4)] = f.w[j][e];
        }
    }
}

template <class S>
DEVICE void multiply(float (&acc)[S::ROW_GROUPS * 4][S::COL_GROUPS * 4], const typename S::Stage& stage, int row, int col) {
#pragma unroll
    for (int k = 0; k < STEP; k++) {
        Packed<float> x[S::ROW_GROUPS], w[S::COL_GROUPS];
        for (int i = 0; i < S::ROW_GROUPS; i++) x[i] = load16(&stage.x[k][row + i * (S::ROWS / S::ROW_GROUPS)]);
        for (int j = 0; j < S::COL_GROUPS; j++) w[j] = load16(&stage.w[k][col + j * (S::COLS / S::COL_GROUPS)]);
#pragma unroll
        for (int i = 0; i < S::ROW_GROUPS * 4; i++) {
#pragma unroll
            for (int j = 0; j < S::COL_GROUPS * 4; j++) acc[i][j] += x[i / 4].at[i % 4] * w[j / 4].at[j % 4];
        }
    }
}

// Adds what else is added to four sums and stores them.
DEVICE void store_four(const GemmF32Args& args, int row, int col, float (&sums)[4]) {
    int left = args.n - col;
    if (row >= args.rows || left <= 0) return;
    u64 at = u64(row) * u32(args.out_stride) + u32(col);
    float other[4];
    if (args.bias) {
        load_up_to4(other, args.bias + col, left);
        for (int e = 0; e < 4; e++) sums[e] += other[e];
    }
    if (args.residual) {
        load_up_to4(other, args.residual + at, left);
        for (int e = 0; e < 4; e++) sums[e] += other[e];
    }
    store_up_to4(args.out + at, sums, left);
}

template <class S>
DEVICE void gemm(const GemmF32Args& args) {
    SHARED(typename S::Room, room);
    int row_tiles = ceil_div(args.rows, S::ROWS), steps = ceil_div(args.k, STEP);
    int first_row = int(blockIdx.x) % row_tiles * S::ROWS, first_col = int(blockIdx.x) / row_tiles * S::COLS;
    int row = int(threadIdx.x) / S::ACROSS * 4, col = int(threadIdx.x) % S::ACROSS * 4;
    float acc[S::ROW_GROUPS * 4][S::COL_GROUPS * 4] = {};
    Fetched<S> fetched;
    fetch(fetched, args, first_row, first_col, 0);
    put<S>(room.stages[0], fetched);
    for (int step = 0; step < steps; step++) {
        // This step is there, and all are done with the one before, whose place the next one takes.
        __syncthreads();
        if (step + 1 < steps) fetch(fetched, args, first_row, first_col, step + 1);
        multiply<S>(acc, room.stages[step % 2], row, col);
        if (step + 1 < steps) put<S>(room.stages[(step + 1) % 2], fetched);
    }
#pragma unroll
    for (int i = 0; i < S::ROW_GROUPS * 4; i++) {
        int at_row = first_row + row + i / 4 * (S::ROWS / S::ROW_GROUPS) + i % 4;
#pragma unroll
        for (int j = 0; j < S::COL_GROUPS; j++) {
            float sums[4] = {acc[i][4 * j], acc[i][4 * j + 1], acc[i][4 * j + 2], acc[i][4 * j + 3]};
            store_four(args, at_row, first_col + col + j * (S::COLS / S::COL_GROUPS), sums);
        }
    }
}

KERNEL_RESIDENT(gemm_f32_128x128, GemmF32Args, 256, 2) { gemm<Tiling<128, 128, 2, 2, false>>(args); }
KERNEL_RESIDENT(gemm_f32_nn_128x128, GemmF32Args, 256, 2) { gemm<Tiling<128, 128, 2, 2, true>>(args); }
KERNEL_RESIDENT(gemm_f32_64x64, GemmF32Args, 128, 4) { gemm<Tiling<64, 64, 2, 1, false>>(args); }
KERNEL_RESIDENT(gemm_f32_nn_64x64, GemmF32Args, 128, 4) { gemm<Tiling<64, 64, 2, 1, true>>(args); }
