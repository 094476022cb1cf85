// Linear layers of experts, of which each row has its own: the rows of an expert are adjacent, and where they begin is known on the
// card alone. How a product is computed is said in lib/gemv.cuh; a row's result is the bits that gemv.cu gives with the expert's
// weight. An expert without rows costs blocks that end at once; one with more rows than a launch takes at once reads its weights
// again for them, mostly from the cache.
//
// Entry points: gemv_experts_FORMAT_FEATURESxROWS, FORMAT one of f16 bf16 q4_0 q4_1 q8_0 q4_k q6_k f8, for any number of rows, ROWS at
// once:
//   16x8   x of any type
//   64x32  x BF16
//   and gemv_experts_f32_4x8, x of any type, alignment and padding.
// Launch: grid (ceil(features / FEATURES), experts), block 256, no dynamic shared memory.
#include "lib/gemv.cuh"

struct ExpertGemvArgs {
    const Weight* weights;  // [experts], all [features, cols] and of the kernel's format
    const u32* starts;      // [experts + 1]: the first row of each, and the number of rows
    const void* x;          // [rows, cols] of x_type, as GemvArgs has it
    float* out;             // [rows, features]
    int x_stride;           // elements from row to row
    int x_type;             // ElementType
};

// The rows `first..` of an expert as layers of their own.
DEVICE GemvArgs rows_of(const ExpertGemvArgs& args, const Weight& w, int first, int rows) {
    GemvArgs own = {};
    const u64 row_bytes = u64(u32(args.x_stride)) * (args.x_type == F32 ? 4 : 2);
    own.x = static_cast<const u8*>(args.x) + u32(first) * row_bytes;
    own.targets[0] = {w, nullptr, nullptr, args.out + u64(u32(first)) * u32(w.rows)};
    own.num_targets = 1;
    own.rows = rows;
    own.x_stride = args.x_stride;
    own.x_type = args.x_type;
    return own;
}

// Calls `f` with some of the expert's rows at a time.
template <int ROWS, class Features>
DEVICE void for_rows(const ExpertGemvArgs& args, Features f) {
    wait_for_inputs();
    const int first = int(args.starts[blockIdx.y]), end = int(args.starts[blockIdx.y + 1]);
    if (first >= end) return;
    const Weight w = args.weights[blockIdx.y];
#pragma unroll 1
    for (int row = first; row < end; row += ROWS) {
        // What the rows before have left in shared memory has been read.
        if (row > first) __syncthreads();
        const GemvArgs own = rows_of(args, w, row, min(end - row, ROWS));
        f(own);
    }
}

template <class F, int TILES, int ROW_TILES>
DEVICE void gemv_experts(const ExpertGemvArgs& args) {
    for_rows<8 * ROW_TILES>(args, [](const GemvArgs& own) {
        gemv_features<F, TILES, ROW_TILES>(own, own.targets[0], int(blockIdx.x) * 16 * TILES);
    });
}

#define GEMV_EXPERTS(name, Format)                                                                             \
    KERNEL_EARLY(gemv_experts_##name##_16x8, ExpertGemvArgs, THREADS, 3) { gemv_experts<Format, 1, 1>(args); } \
    KERNEL_EARLY(gemv_experts_##name##_64x32, ExpertGemvArgs, THREADS, 1) { gemv_experts<Format, 4, 4>(args); }

#if COMPILES(1)
GEMV_EXPERTS(f16, FormatF16)
#endif
#if COMPILES(2)
GEMV_EXPERTS(bf16, FormatBf16)
#endif
#if COMPILES(3)
GEMV_EXPERTS(q4_0, FormatQ4_0)
#endif
#if COMPILES(4)
GEMV_EXPERTS(q4_1, FormatQ4_1)
#endif
#if COMPILES(5)
GEMV_EXPERTS(q8_0, FormatQ8_0)
#endif
#if COMPILES(6)
GEMV_EXPERTS(q4_k, FormatQ4_K)
#endif
#if COMPILES(7)
GEMV_EXPERTS(q6_k, FormatQ6_K)
#endif
#if COMPILES(8)
GEMV_EXPERTS(f8, FormatF8)
#endif

#if COMPILES(0)
KERNEL(gemv_experts_f32_4x8, ExpertGemvArgs, THREADS) {
    for_rows<F32_ROWS>(args, [](const GemvArgs& own) {
        gemv_f32_features(own, own.targets[0], int(blockIdx.x) * F32_FEATURES);
    });
}
#endif
