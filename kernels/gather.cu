// out[i] = x[rows[i]] for rows of any element type. A block a row; rows are copied by 16 bytes if size and addresses
// allow, else by 4 or 1.
//
// Entry point: gather_rows. Launch: grid rows of out, block 256.
#include "lib/kernel.cuh"

struct GatherArgs {
    const u8* x;      // [rows of x, row_bytes]
    const u32* rows;  // [rows of out]; below the rows of x
    u8* out;          // [rows of out, row_bytes]; not x
    u64 row_bytes;
};

#define THREADS 256

template <class T>
DEVICE void copy_row(const u8* from, u8* to, u64 bytes) {
    const T* source = reinterpret_cast<const T*>(from);
    T* target = reinterpret_cast<T*>(to);
#pragma unroll 4
    for (u64 i = threadIdx.x; i < bytes / sizeof(T); i += THREADS) target[i] = source[i];
}

KERNEL(gather_rows, GatherArgs, THREADS) {
    const u8* from = args.x + args.rows[blockIdx.x] * args.row_bytes;
    u8* to = args.out + blockIdx.x * args.row_bytes;
    u64 alignment = reinterpret_cast<u64>(args.x) | reinterpret_cast<u64>(args.out) | args.row_bytes;
    if (alignment % 16 == 0) copy_row<Packed<u32>>(from, to, args.row_bytes);
    else if (alignment % 4 == 0) copy_row<u32>(from, to, args.row_bytes);
    else copy_row<u8>(from, to, args.row_bytes);
}
