// Linear layers for few rows: out = x Wᵀ + bias + residual, for up to three layers that share x, in every weight format; how is
// said in lib/gemv.cuh.
//
// Entry points: gemv_FORMAT_FEATURESxROWS for at most ROWS rows, FORMAT one of f16 bf16 q4_0 q4_1 q8_0 q4_k q6_k f8:
//   16x8, 32x8    x of any type; 32x8 reads x less often, for more than 2 rows if two blocks a multiprocessor are left
//   32x16, 64x32  x BF16
//   and gemv_f32_4x8, x of any type, alignment and padding.
// Launch: grid ceil(weight.rows / FEATURES) summed over the targets, block 256, no dynamic shared memory.
#include "lib/gemv.cuh"

template <class F, int TILES, int ROW_TILES>
DEVICE void gemv(const GemvArgs& args) {
    Place place = place_of_block(args, 16 * TILES);
    const GemvTarget& target = args.targets[place.target];
    prefetch_rows<16 * TILES>(target.weight, place.first);
    gemv_features<F, TILES, ROW_TILES>(args, target, place.first);
}

#define GEMV(name, Format)                                                                   \
    KERNEL_EARLY(gemv_##name##_16x8, GemvArgs, THREADS, 3) { gemv<Format, 1, 1>(args); }  \
    KERNEL_EARLY(gemv_##name##_32x8, GemvArgs, THREADS, 2) { gemv<Format, 2, 1>(args); }  \
    KERNEL_EARLY(gemv_##name##_32x16, GemvArgs, THREADS, 2) { gemv<Format, 2, 2>(args); } \
    KERNEL_EARLY(gemv_##name##_64x32, GemvArgs, THREADS, 1) { gemv<Format, 4, 4>(args); }

#if COMPILES(1)
GEMV(f16, FormatF16)
#endif
#if COMPILES(2)
GEMV(bf16, FormatBf16)
#endif
#if COMPILES(3)
GEMV(q4_0, FormatQ4_0)
#endif
#if COMPILES(4)
GEMV(q4_1, FormatQ4_1)
#endif
#if COMPILES(5)
GEMV(q8_0, FormatQ8_0)
#endif
#if COMPILES(6)
GEMV(q4_k, FormatQ4_K)
#endif
#if COMPILES(7)
GEMV(q6_k, FormatQ6_K)
#endif
#if COMPILES(8)
GEMV(f8, FormatF8)
#endif

#if COMPILES(0)
KERNEL(gemv_f32_4x8, GemvArgs, THREADS) {
    Place place = place_of_block(args, F32_FEATURES);
    gemv_f32_features(args, args.targets[place.target], place.first);
}
#endif
