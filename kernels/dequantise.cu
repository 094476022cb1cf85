// Rows first .. first + count of a weight in any format as a matrix of BF16, F16 or F32: what products of many rows read,
// panel by panel. Values are ggml's, rounded once to the output's type.
//
// A quad of threads takes a unit of a row (lib/weight.cuh), so that a warp reads 512 bytes in a piece and stores whole
// sectors. Columns from cols to the next multiple of 8 become zeros; none beyond is written.
//
// Entry point: dequantise. Launch: a thread for each of count * 4 * ceil(cols / unit), unit being 64 for F16 and BF16, 32
// for F32 and 128 for all others, in blocks of 256; no dynamic shared memory.
#include "lib/weight.cuh"

struct DequantiseArgs {
    Weight weight;
    void* out;  // [count, cols] of out_type, 16-byte aligned rows
    int first;
    int count;
    int out_stride;  // elements from row to row, at least cols rounded up to 8
    int out_type;    // ElementType
};

// Four elements of a row; `to` is 16-byte aligned if they are F32, 8-byte aligned if not.
DEVICE void store4(void* to, u64 at, const float* v, int type) {
    if (type == F32) {
        store16(static_cast<float*>(to) + at, Packed<float>{{v[0], v[1], v[2], v[3]}});
        return;
    }
    Words2 words = {};
    for (int i = 0; i < 4; i++) words.at[i / 2] |= u32(type == BF16 ? f32_to_bf16(v[i]) : f32_to_f16(v[i])) << 16 * (i % 2);
    *reinterpret_cast<Words2*>(static_cast<u16*>(to) + at) = words;
}
// Eight, 16-byte aligned.
DEVICE void store8(void* to, u64 at, const float (&v)[8], int type) {
    if (type == F32) {
        store4(to, at, v, type);
        store4(to, at + 4, v + 4, type);
        return;
    }
    Packed<u32> words = {};
    for (int i = 0; i < 8; i++) words.at[i / 2] |= u32(type == BF16 ? f32_to_bf16(v[i]) : f32_to_f16(v[i])) << 16 * (i % 2);
    store16(static_cast<u32*>(to) + at / 2, words);
}

struct DequantiseUnit {
    template <class F>
    DEVICE void run(const DequantiseArgs& args) {
        const Weight w = args.weight;
        u32 units = units_of<F>(w), quad = (blockIdx.x * 256u + threadIdx.x) / 4, row = quad / units;
        int c = int(threadIdx.x % 4), unit = int(quad % units);
        if (row >= u32(args.count)) return;
        u32 weight_row = u32(args.first) + row;
        typename F::Piece piece = F::load(w, F::start(w, weight_row), unit, c);
        typename F::Scales scales = F::scales(piece, unit);
        float row_scale = F::row_scale(w, weight_row);
#pragma unroll
        for (int b = 0; b < F::COLS / 32; b++) {
            int col = F::COLS * unit + 32 * b;
            if (col + (F::HALVES ? 0 : 8 * c) >= w.cols) break;
            float v[8];
            F::values(piece, scales, b, v);
            if (F::HAS_ROW_SCALE) {
                for (int i = 0; i < 8; i++) v[i] *= row_scale;
            }
            u64 at = u64(row) * u32(args.out_stride) + u32(col);
            if (F::HALVES) {
                store4(args.out, at + u32(first_col<F>(c)), v, args.out_type);
                store4(args.out, at + u32(second_col<F>(c)), v + 4, args.out_type);
            } else {
                store8(args.out, at + u32(first_col<F>(c)), v, args.out_type);
            }
        }
    }
};

KERNEL(dequantise, DequantiseArgs, 256) { with_format<DequantiseUnit>(args.weight.format, args); }
