// out = gate / (1 + exp(-gate)) * up (SwiGLU; Shazeer, arXiv 2002.05202), eight elements a thread: bound by memory.
// Tensors may begin at any element; those that are 16-byte aligned are read and written in whole vectors.
//
// Entry point: silu_mul. Launch: grid ceil(n / 2048), block 256.
#include "lib/kernel.cuh"

struct SiluMulArgs {
    const float* gate;  // [n]
    const float* up;    // [n]
    void* out;          // [n] of out_type; may be gate or up if F32
    u64 n;
    int out_type;
    int unused;
};

#define THREADS 256
#define ELEMENTS 8

template <class T>
DEVICE void store_rounded(T* to, const float (&v)[ELEMENTS], i64 count) {
    if (count >= ELEMENTS && is_aligned16(to)) {
        Packed<u32> packed;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            packed.at[i] = u32(from_f32<T>(v[2 * i]).bits) | u32(from_f32<T>(v[2 * i + 1]).bits) << 16;
        }
        store16(reinterpret_cast<u32*>(to), packed);
        return;
    }
#pragma unroll
    for (int i = 0; i < ELEMENTS; i++) {
        if (i < count) to[i] = from_f32<T>(v[i]);
    }
}

KERNEL(silu_mul, SiluMulArgs, THREADS) {
    const u64 at = ELEMENTS * (u64(blockIdx.x) * THREADS + threadIdx.x);
    const i64 count = i64(args.n) - i64(at);
    if (count <= 0) return;
    float gate[2][4], up[2][4], out[ELEMENTS];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        load_up_to4(gate[i], args.gate + at + 4 * i, count - 4 * i);
        load_up_to4(up[i], args.up + at + 4 * i, count - 4 * i);
    }
#pragma unroll
    for (int i = 0; i < ELEMENTS; i++) {
        float g = gate[i / 4][i % 4];
        out[i] = g / (1.0f + expf(-g)) * up[i / 4][i % 4];
    }
    if (args.out_type == BF16) {
        store_rounded(static_cast<bf16*>(args.out) + at, out, count);
    } else if (args.out_type == F16) {
        store_rounded(static_cast<f16*>(args.out) + at, out, count);
    } else {
        float* to = static_cast<float*>(args.out) + at;
        const float first[4] = {out[0], out[1], out[2], out[3]}, second[4] = {out[4], out[5], out[6], out[7]};
        store_up_to4(to, first, count);
        store_up_to4(to + 4, second, count - 4);
    }
}
