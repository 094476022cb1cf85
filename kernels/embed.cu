// out[i] = scale * table[ids[i]], dequantised to F32, from a table in any format.
//
// A quad of threads takes a unit of a row (lib/weight.cuh).
//
// Entry point: embed. Launch: a thread for each of rows * 4 * ceil(cols / unit), unit being 64 for F16 and BF16, 32 for F32
// and 128 for all others, in blocks of 128; no dynamic shared memory.
#include "lib/weight.cuh"

struct EmbedArgs {
    Weight table;    // [vocabulary, cols]
    const u32* ids;  // [rows], each below the vocabulary's size
    float* out;      // [rows, cols]
    int rows;
    float scale;
};

struct EmbedUnit {
    template <class F>
    DEVICE void run(const EmbedArgs& args) {
        const Weight w = args.table;
        u32 units = units_of<F>(w), quad = (blockIdx.x * 128u + threadIdx.x) / 4, row = quad / units;
        int c = int(threadIdx.x % 4), unit = int(quad % units);
        if (row >= u32(args.rows)) return;
        u32 id = min(args.ids[row], u32(w.rows - 1));
        typename F::Piece piece = F::load(w, F::start(w, id), unit, c);
        typename F::Scales scales = F::scales(piece, unit);
        float row_scale = F::row_scale(w, id);
#pragma unroll
        for (int b = 0; b < F::COLS / 32; b++) {
            float v[8];
            F::values(piece, scales, b, v);
            for (int half = 0; half < 2; half++) {
                int col = F::COLS * unit + 32 * b + (half == 0 ? first_col<F>(c) : second_col<F>(c));
                float four[4];
                for (int i = 0; i < 4; i++) {
                    four[i] = (F::HAS_ROW_SCALE ? v[4 * half + i] * row_scale : v[4 * half + i]) * args.scale;
                }
                store_up_to4(args.out + u64(row) * u32(w.cols) + u32(col), four, w.cols - col);
            }
        }
    }
};

KERNEL(embed, EmbedArgs, 128) { with_format<EmbedUnit>(args.table.format, args); }
