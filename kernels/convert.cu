// A matrix as BF16, F16 or F32, with zeros from cols to the next multiple of 8: what gemm and gemv read.
//
// A thread takes 8 columns: 16-byte loads and stores if x is F32 and rows are aligned so. F16 is saturated: an activation beyond it
// would make everything after it infinite.
//
// Entry point: convert. Launch: a thread for each of rows * ceil(cols / 8), in blocks of 256; no dynamic shared memory.
#include "lib/kernel.cuh"

struct ConvertArgs {
    const void* x;   // [rows, cols] of x_type
    void* out;       // [rows, cols] of out_type, 16-byte aligned rows
    int rows;
    int cols;
    int x_stride;    // elements from row to row
    int out_stride;  // likewise; at least cols rounded up to 8
    int out_type;    // ElementType
    int x_type;      // ElementType
};

// NaN and infinity stay what they are.
DEVICE float saturated_f16(float v) {
    const float largest = 65504.0f;
    bool is_beyond = fabsf(v) > largest && fabsf(v) < INFINITY_F32;
    return is_beyond ? copysignf(largest, v) : v;
}

KERNEL(convert, ConvertArgs, 256) {
    u32 groups = u32(args.cols + 7) / 8, i = blockIdx.x * 256u + threadIdx.x, row = i / groups, col = i % groups * 8;
    if (row >= u32(args.rows)) return;
    float v[2][4];
    u64 from = u64(row) * u32(args.x_stride) + col;
    if (args.x_type == F32) {
        const float* x = static_cast<const float*>(args.x) + from;
        load_up_to4(v[0], x, args.cols - int(col));
        load_up_to4(v[1], x + 4, args.cols - int(col) - 4);
    } else {
        for (int e = 0; e < 8; e++) {
            v[e / 4][e % 4] = int(col) + e < args.cols ? load_element(args.x, from + e, args.x_type) : 0.0f;
        }
    }
    u64 at = u64(row) * u32(args.out_stride) + col;
    if (args.out_type == F32) {
        for (int half = 0; half < 2; half++) {
            const float (&four)[4] = v[half];
            store16(static_cast<float*>(args.out) + at + 4 * half, Packed<float>{{four[0], four[1], four[2], four[3]}});
        }
        return;
    }
    Packed<u32> words = {};
    for (int e = 0; e < 8; e++) {
        float value = v[e / 4][e % 4];
        words.at[e / 2] |= u32(args.out_type == BF16 ? f32_to_bf16(value) : f32_to_f16(saturated_f16(value))) << 16 * (e % 2);
    }
    store16(static_cast<u32*>(args.out) + at / 2, words);
}
