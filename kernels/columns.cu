// Copies columns of the groups that rows are made of: to[group, to_col + i] = from[group, from_col + i] for i below `width`. What a fused
// projection gives is taken apart so, and its gradient put together. A warp takes a group; the other columns of `to` stay.
//
// Entry point: copy_columns. Launch: grid ceil(groups / 8), block 256. Groups are those of all rows, at most 2^31 - 1.
#include "lib/kernel.cuh"

struct ColumnsArgs {
    const float* from;  // [groups, from_len]
    float* to;          // [groups, to_len]
    int groups;
    int from_len;
    int to_len;
    int from_col;
    int to_col;
    int width;
};

#define THREADS 256

KERNEL(copy_columns, ColumnsArgs, THREADS) {
    const u64 group = u64(blockIdx.x) * (THREADS / WARP_LANES) + warp_idx();
    if (group >= u64(args.groups)) return;
    const float* from = args.from + group * args.from_len + args.from_col;
    float* to = args.to + group * args.to_len + args.to_col;
    for (int i = lane_idx(); i < args.width; i += WARP_LANES) to[i] = from[i];
}
