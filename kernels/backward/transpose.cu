// Matrices in other orders.
// Launch:
//     transpose: grid (ceil(cols / 32), ceil(rows / 32)), block 256
//     transpose_panels: grid (ceil(n / 16)), block 256
#include "../lib/kernel.cuh"

struct TransposeArgs {
    const float* x;  // [rows, cols]
    float* out;      // [cols, rows]
    int rows, cols;
};

#define TILE 32
#define TILE_ROWS 8  // that a block reads at once

struct TransposeTile {
    // A column more than is used, so that the threads of a warp, which read a column, find it in 32 banks.
    float at[TILE][TILE + 1];
};

KERNEL(transpose, TransposeArgs, TILE * TILE_ROWS) {
    SHARED(TransposeTile, tile);
    const int first_row = int(blockIdx.y) * TILE, first_col = int(blockIdx.x) * TILE;
    const int x = lane_idx();
    for (int y = warp_idx(); y < TILE; y += TILE_ROWS) {
        if (first_row + y < args.rows && first_col + x < args.cols) {
            tile.at[y][x] = args.x[u64(first_row + y) * args.cols + first_col + x];
        }
    }
    __syncthreads();
    for (int y = warp_idx(); y < TILE; y += TILE_ROWS) {
        if (first_col + y < args.cols && first_row + x < args.rows) {
            args.out[u64(first_col + y) * args.rows + first_row + x] = tile.at[x][y];
        }
    }
}

// xᵀ in panels of 16 of its rows (fewer in the last), each panel transposed again: what `LoraFactors::pack_b` makes of xᵀ. A
// panel is 16 columns of x, which are 64 adjacent bytes of each row: no shared memory is needed.
struct TransposePanelsArgs {
    const float* x;  // [rank, n]
    float* out;      // [n, rank] in panels
    int rank, n;
};

#define PANEL 16
#define PANEL_THREADS 256

KERNEL(transpose_panels, TransposePanelsArgs, PANEL_THREADS) {
    const int first = int(blockIdx.x) * PANEL;
    const int width = min(PANEL, args.n - first);
    float* out = args.out + u64(first) * args.rank;
    for (int i = threadIdx.x; i < args.rank * width; i += PANEL_THREADS) {
        out[i] = args.x[u64(i / width) * args.n + first + i % width];
    }
}
