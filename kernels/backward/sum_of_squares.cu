// Σ x² in f64, in an order that depends on the length alone: each block adds up 16384 elements, then one block the blocks'
// sums. Launch, one after the other, with parts = max(1, ceil(n / 16384)):
//     sum_of_squares_parts: grid (parts), block 256
//     sum_of_squares_total: grid (1), block 256
#include "../lib/kernel.cuh"

struct SumOfSquaresArgs {
    const float* x;  // [n]
    double* parts;   // [parts]: written by the first kernel, read by the second
    double* total;   // [1]: written by the second
    u64 n;
    int num_parts;
};

#define THREADS 256
#define PART 16384

struct Room {
    double of_warp[THREADS / WARP_LANES];
};

// The block's sum, in its first thread.
DEVICE double sum_over_block(double v, Room& room) {
    for (int offset = WARP_LANES / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(FULL_WARP, v, offset);
    if (lane_idx() == 0) room.of_warp[warp_idx()] = v;
    __syncthreads();
    double sum = 0.0;
    for (int i = 0; i < THREADS / WARP_LANES; i++) sum += room.of_warp[i];
    return sum;
}

KERNEL(sum_of_squares_parts, SumOfSquaresArgs, THREADS) {
    SHARED(Room, room);
    const u64 first = u64(blockIdx.x) * PART;
    double sum = 0.0;
    for (int i = 4 * int(threadIdx.x); i < PART; i += 4 * THREADS) {
        float v[4];
        load_up_to4(v, args.x + first + i, i64(args.n) - i64(first) - i);
        for (int j = 0; j < 4; j++) sum += double(v[j]) * double(v[j]);
    }
    sum = sum_over_block(sum, room);
    if (threadIdx.x == 0) args.parts[blockIdx.x] = sum;
}

KERNEL(sum_of_squares_total, SumOfSquaresArgs, THREADS) {
    SHARED(Room, room);
    double sum = 0.0;
    for (int i = threadIdx.x; i < args.num_parts; i += THREADS) sum += args.parts[i];
    sum = sum_over_block(sum, room);
    if (threadIdx.x == 0) *args.total = sum;
}
