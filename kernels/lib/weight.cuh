// How weights lie in device memory, and how they are read. crates/device-cuda/src/planes.rs writes what is read here.
//
// A weight [rows, cols] (output features, input features) is held in up to four planes, each row-major over the rows and
// 256-byte aligned. Values and scales are those of the file, bit for bit; only their places differ.
//
//   F32, F16, BF16
//     elements: the floats, rows padded with zeros to a multiple of 8 columns.
//
// The other formats are padded with zero bytes to a multiple of 128 columns, a `unit`. It has four blocks b of 32 columns,
// and is read by four lanes c. Lane c takes 8 columns of each block, called e0 .. e7, from column 8c (of Q6_K: four columns
// from 4c and four from 16 + 4c), so that 16-byte loads bring whole operands of mma.m16n8k16.
//
//   Q4_0: w = d (q - 8)
//     elements: 64 bytes a unit, 4 bytes for (c, b), c outermost: of this little-endian word e(2j) is at bit 4j and
//     e(2j + 1) at bit 16 + 4j.
//     scales: f16 d a block.
//   Q4_1: w = d q + m
//     elements: as Q4_0.
//     scales: f16 d and f16 m a block, side by side.
//   Q8_0: w = d q
//     elements: 128 bytes a unit, 8 bytes for (b / 2, c, b % 2) in this order: signed bytes e0 e2 e1 e3 e4 e6 e5 e7.
//     scales: f16 d a block.
//   Q4_K: w = (d s) q - dmin m
//     elements: as Q4_0.
//     scales: the first 16 bytes of the file's block, for two units: f16 d, f16 dmin, eight 6-bit scales s and minima m.
//   Q6_K: w = (d s) (q - 32)
//     elements: the low four bits, as Q4_0.
//     scales: a signed byte s for each 16 columns.
//     high: 32 bytes a unit, 8 bytes for c, which are two words: word b / 2 has the upper two bits of e(2j) at bit
//     8 (b % 2) + 2j, and those of e(2j + 1) 16 bits further up.
//     supers: f16 d each two units.
//   F8: w = s e
//     elements: as Q8_0, but e4m3 (1 sign, 4 exponent, 3 fraction bits); 0x7f and 0xff, its NaN, do not occur.
//     scales: f32 s a row; NaN if it had anything that is not finite.
#pragma once
#include "kernel.cuh"

// The twin of `PlaneFormat` in planes.rs.
enum WeightFormat {
    WEIGHT_F32 = 0,
    WEIGHT_F16 = 1,
    WEIGHT_BF16 = 2,
    WEIGHT_Q4_0 = 3,
    WEIGHT_Q4_1 = 4,
    WEIGHT_Q8_0 = 5,
    WEIGHT_Q4_K = 6,
    WEIGHT_Q6_K = 7,
    WEIGHT_F8 = 8,
};

// A weight's planes; those that its format has not are anything.
struct Weight {
    const u8* elements;
    const u8* scales;
    const u8* high;
    const u8* supers;
    int rows;    // output features
    int cols;    // input features; a multiple of 32 for Q4_0, Q4_1, Q8_0, of 256 for Q4_K, Q6_K
    int format;  // WeightFormat
    int unused;
};

// --- Pairs of bf16 in a register, the first in the lower half.

#ifndef WARDROBE_HOST
// a & b | c in one instruction, which the compiler makes two of if b and c are constants.
DEVICE u32 and_or(u32 a, u32 b, u32 c) {
    u32 r;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}
// a * b + c, each rounded once.
DEVICE u32 fma_bf16x2(u32 a, u32 b, u32 c) {
    u32 r;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}
DEVICE u32 to_bf16x2(float first, float second) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(second), "f"(first));
    return r;
}
// 16 bytes that this multiprocessor does not read again, so that what it does stays in its L1 cache.
DEVICE Packed<u32> load16_once(const void* from) {
    Packed<u32> r;
    asm("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(r.at[0]), "=r"(r.at[1]), "=r"(r.at[2]), "=r"(r.at[3])
        : "l"(from));
    return r;
}
#else
DEVICE u32 and_or(u32 a, u32 b, u32 c) { return (a & b) | c; }
DEVICE u32 to_bf16x2(float first, float second) { return u32(f32_to_bf16(first)) | u32(f32_to_bf16(second)) << 16; }
DEVICE u32 fma_bf16x2(u32 a, u32 b, u32 c) {
    float first = bits_to_f32(a << 16) * bits_to_f32(b << 16) + bits_to_f32(c << 16);
    float second = bits_to_f32(a & 0xffff0000u) * bits_to_f32(b & 0xffff0000u) + bits_to_f32(c & 0xffff0000u);
    return to_bf16x2(first, second);
}
DEVICE Packed<u32> load16_once(const void* from) { return load16(static_cast<const u32*>(from)); }
#endif
DEVICE float first_f32(u32 pair) { return bits_to_f32(pair << 16); }
DEVICE float second_f32(u32 pair) { return bits_to_f32(pair & 0xffff0000u); }
// The upper halves of two words: bf16 pairs of floats that need no rounding.
DEVICE u32 upper_halves(u32 first, u32 second) { return first >> 16 | (second & 0xffff0000u); }

// bf16 integers 128 .. 255 are 0x4300 and the low seven bits.
#define BF16X2_128 0x43004300u
#define BF16X2_ONE 0x3f803f80u
#define BF16X2_NEGATIVE_128 0xc300c300u
#define BF16X2_NEGATIVE_136 0xc308c308u
#define BF16X2_NEGATIVE_160 0xc320c320u
#define BF16X2_NEGATIVE_ZERO 0x80008000u
#define BF16X2_2_POW_120 0x7b807b80u

// 8 bytes of memory in one access.
struct alignas(8) Words2 {
    u32 at[2];
};
DEVICE Words2 load8(const u8* from) {
#ifdef WARDROBE_HOST
    simt::check_alignment(from, 8);
#endif
    return *reinterpret_cast<const Words2*>(from);
}
DEVICE float f16_at(const Words2& words, int i) { return f16_to_f32(u16(words.at[i / 2] >> 16 * (i % 2))); }

// --- The formats. Each has
//
//   COLS               columns of a unit, blocks of 32;
//   start              where a row begins, in units or in 16 bytes: fewer than 2^32;
//   Piece, load        what lane c of four reads of a unit of the row that begins at `start`;
//   Scales, scales     the piece's scales, unpacked;
//   BF16_PARTS, pairs  e0 .. e7 of a block as four bf16 pairs, exact, before scales; F16 is the sum of two such parts;
//   SCALES             scales of a block: none, one, or two for its halves of 16; `scale`;
//   HAS_MINIMUM        whether each block has an addend; `minimum`;
//   HALVES             which columns a lane takes, as said above;
//   values             e0 .. e7 as f32, with everything.

// Columns of e0 .. e3 and e4 .. e7 in a block.
template <class F>
DEVICE int first_col(int c) {
    return F::HALVES ? 4 * c : 8 * c;
}
template <class F>
DEVICE int second_col(int c) {
    return F::HALVES ? 16 + 4 * c : 8 * c + 4;
}
template <class F>
DEVICE u32 units_of(const Weight& w) {
    return u32(w.cols + F::COLS - 1) / F::COLS;
}

struct NoScales {};

// F16 and BF16.
template <class T>
struct PlainFormat {
    static constexpr int COLS = 64, BF16_PARTS = 1, SCALES = 0;
    static constexpr bool HALVES = false, HAS_MINIMUM = false, HAS_ROW_SCALE = false;
    struct Piece {
        Packed<u32> words[2];
    };
    using Scales = NoScales;

    DEVICE u32 start(const Weight& w, u32 row) { return row * (u32(w.cols + 7) / 8); }
    DEVICE Piece load(const Weight& w, u32 start, int unit, int c) {
        Piece piece = {};
        for (int b = 0; b < 2; b++) {
            u32 at = u32(COLS * unit + 32 * b + 8 * c) / 8;
            if (8 * at < u32(w.cols)) piece.words[b] = load16_once(w.elements + 16 * u64(start + at));
        }
        return piece;
    }
    DEVICE NoScales scales(const Piece&, int) { return {}; }
    DEVICE void pairs(const Piece& piece, int b, int, u32 (&out)[4]) {
        for (int j = 0; j < 4; j++) out[j] = piece.words[b].at[j];
    }
    DEVICE float scale(const NoScales&, int, int) { return 1.0f; }
    DEVICE float row_scale(const Weight&, u32) { return 1.0f; }
    DEVICE void values(const Piece& piece, const NoScales&, int b, float (&v)[8]) {
        for (int j = 0; j < 4; j++) {
            u32 pair = piece.words[b].at[j];
            v[2 * j] = to_f32(T{u16(pair)});
            v[2 * j + 1] = to_f32(T{u16(pair >> 16)});
        }
    }
};

using FormatBf16 = PlainFormat<bf16>;

// 11 bits of a number are the sum of 8, cut off, and the rest.
struct FormatF16 : PlainFormat<f16> {
    static constexpr int BF16_PARTS = 2;
    DEVICE void pairs(const Piece& piece, int b, int part, u32 (&out)[4]) {
        float v[8];
        values(piece, {}, b, v);
        for (int j = 0; j < 4; j++) {
            u32 first = f32_to_bits(v[2 * j]), second = f32_to_bits(v[2 * j + 1]);
            if (part == 1) {
                first = f32_to_bits(v[2 * j] - bits_to_f32(first & 0xffff0000u));
                second = f32_to_bits(v[2 * j + 1] - bits_to_f32(second & 0xffff0000u));
            }
            out[j] = upper_halves(first, second);
        }
    }
};

// For `values` alone: products with F32 weights are gemv_f32's.
struct FormatF32 {
    static constexpr int COLS = 32;
    static constexpr bool HALVES = false, HAS_ROW_SCALE = false;
    struct Piece {
        Packed<u32> words[2];
    };
    using Scales = NoScales;

    DEVICE u32 start(const Weight& w, u32 row) { return row * (u32(w.cols + 7) / 8 * 2); }
    DEVICE Piece load(const Weight& w, u32 start, int unit, int c) {
        Piece piece = {};
        u32 col = u32(COLS * unit + 8 * c);
        if (col < u32(w.cols)) {
            const u8* from = w.elements + 16 * u64(start + col / 4);
            piece.words[0] = load16_once(from);
            piece.words[1] = load16_once(from + 16);
        }
        return piece;
    }
    DEVICE NoScales scales(const Piece&, int) { return {}; }
    DEVICE float row_scale(const Weight&, u32) { return 1.0f; }
    DEVICE void values(const Piece& piece, const NoScales&, int, float (&v)[8]) {
        for (int i = 0; i < 8; i++) v[i] = bits_to_f32(piece.words[i / 4].at[i % 4]);
    }
};

// What all block formats do with pairs, scales and minima. Products are exact in f32, so a fused multiply-add changes
// nothing.
template <class F>
struct BlockFormat {
    static constexpr int COLS = 128, BF16_PARTS = 1;
    static constexpr bool HAS_ROW_SCALE = false;

    DEVICE u32 start(const Weight& w, u32 row) { return row * units_of<F>(w); }
    DEVICE float row_scale(const Weight&, u32) { return 1.0f; }
    template <class Piece, class Scales>
    DEVICE void values(const Piece& piece, const Scales& scales, int b, float (&v)[8]) {
        u32 pairs[4];
        F::pairs(piece, b, 0, pairs);
        for (int i = 0; i < 8; i++) {
            float q = i % 2 == 0 ? first_f32(pairs[i / 2]) : second_f32(pairs[i / 2]);
            v[i] = q * F::scale(scales, b, i / 4);
            if constexpr (F::HAS_MINIMUM) v[i] += F::minimum(scales, b);
        }
    }
};

// Pair j of a word of nibbles, plus 128.
DEVICE u32 nibble_pair(u32 word, int j) { return and_or(word >> 4 * j, 0x000f000fu, BF16X2_128); }

struct FormatQ4_0 : BlockFormat<FormatQ4_0> {
    static constexpr int SCALES = 1;
    static constexpr bool HALVES = false, HAS_MINIMUM = false;
    using Scales = Words2;
    struct Piece {
        Packed<u32> words;
        Words2 scales;
    };

    DEVICE Piece load(const Weight& w, u32 start, int unit, int c) {
        u64 at = start + u32(unit);
        return {load16_once(w.elements + 64 * at + 16 * c), load8(w.scales + 8 * at)};
    }
    DEVICE Words2 scales(const Piece& piece, int) { return piece.scales; }
    DEVICE void pairs(const Piece& piece, int b, int, u32 (&out)[4]) {
        for (int j = 0; j < 4; j++) out[j] = fma_bf16x2(nibble_pair(piece.words.at[b], j), BF16X2_ONE, BF16X2_NEGATIVE_136);
    }
    DEVICE float scale(const Words2& scales, int b, int) { return f16_at(scales, b); }
};

struct FormatQ4_1 : BlockFormat<FormatQ4_1> {
    static constexpr int SCALES = 1;
    static constexpr bool HALVES = false, HAS_MINIMUM = true;
    using Scales = Packed<u32>;
    struct Piece {
        Packed<u32> words;
        Packed<u32> scales;
    };

    DEVICE Piece load(const Weight& w, u32 start, int unit, int c) {
        u64 at = start + u32(unit);
        return {load16_once(w.elements + 64 * at + 16 * c), load16(reinterpret_cast<const u32*>(w.scales + 16 * at))};
    }
    DEVICE Packed<u32> scales(const Piece& piece, int) { return piece.scales; }
    DEVICE void pairs(const Piece& piece, int b, int, u32 (&out)[4]) {
        for (int j = 0; j < 4; j++) out[j] = fma_bf16x2(nibble_pair(piece.words.at[b], j), BF16X2_ONE, BF16X2_NEGATIVE_128);
    }
    DEVICE float scale(const Packed<u32>& scales, int b, int) { return f16_to_f32(u16(scales.at[b])); }
    DEVICE float minimum(const Packed<u32>& scales, int b) { return f16_to_f32(u16(scales.at[b] >> 16)); }
};

// Words of bytes for blocks 2h and 2h + 1: words 2 (b % 2) and the next of half h.
struct BytesPiece {
    Packed<u32> words[2];
    Words2 scales;
};
// Pair j of a block, its bytes in the lower halves' low bytes.
DEVICE u32 byte_pair(const BytesPiece& piece, int b, int j) {
    return piece.words[b / 2].at[b % 2 * 2 + j / 2] >> 8 * (j % 2);
}

struct FormatQ8_0 : BlockFormat<FormatQ8_0> {
    static constexpr int SCALES = 1;
    static constexpr bool HALVES = false, HAS_MINIMUM = false;
    using Scales = Words2;
    using Piece = BytesPiece;

    DEVICE Piece load(const Weight& w, u32 start, int unit, int c) {
        u64 at = start + u32(unit);
        const u8* from = w.elements + 128 * at + 16 * c;
        return {{load16_once(from), load16_once(from + 64)}, load8(w.scales + 8 * at)};
    }
    DEVICE Words2 scales(const Piece& piece, int) { return piece.scales; }
    // The low seven bits over 128, minus 128 or, with the sign bit, 256: 0xc300 and 0xc380 differ in that very bit.
    DEVICE void pairs(const Piece& piece, int b, int, u32 (&out)[4]) {
        for (int j = 0; j < 4; j++) {
            u32 bytes = byte_pair(piece, b, j);
            out[j] = fma_bf16x2(and_or(bytes, 0x007f007fu, BF16X2_128), BF16X2_ONE,
                                and_or(bytes, 0x00800080u, BF16X2_NEGATIVE_128));
        }
    }
    DEVICE float scale(const Words2& scales, int b, int) { return f16_at(scales, b); }
};

struct FormatF8 : BlockFormat<FormatF8> {
    static constexpr int SCALES = 0;
    static constexpr bool HALVES = false, HAS_MINIMUM = false, HAS_ROW_SCALE = true;
    using Scales = NoScales;
    using Piece = BytesPiece;

    DEVICE Piece load(const Weight& w, u32 start, int unit, int c) {
        const u8* from = w.elements + 128 * u64(start + u32(unit)) + 16 * c;
        return {{load16_once(from), load16_once(from + 64)}, {}};
    }
    DEVICE NoScales scales(const Piece&, int) { return {}; }
    // Exponent and fraction at bf16's places are the number times 2^-120, subnormal numbers included. Adding -0 keeps the
    // sign of 0.
    DEVICE void pairs(const Piece& piece, int b, int, u32 (&out)[4]) {
        for (int j = 0; j < 4; j++) {
            u32 bytes = byte_pair(piece, b, j);
            u32 small = (bytes & 0x007f007fu) << 4 | (bytes & 0x00800080u) << 8;
            out[j] = fma_bf16x2(small, BF16X2_2_POW_120, BF16X2_NEGATIVE_ZERO);
        }
    }
    DEVICE float scale(const NoScales&, int, int) { return 1.0f; }
    DEVICE float row_scale(const Weight& w, u32 row) { return reinterpret_cast<const float*>(w.scales)[row]; }
};

struct FormatQ4_K : BlockFormat<FormatQ4_K> {
    static constexpr int SCALES = 1;
    static constexpr bool HALVES = false, HAS_MINIMUM = true;
    struct Piece {
        Packed<u32> words;
        Packed<u32> head;
    };
    // Of the unit's four blocks, a byte each.
    struct Scales {
        float d, d_min;
        u32 scales, minima;
    };

    DEVICE Piece load(const Weight& w, u32 start, int unit, int c) {
        u64 at = start + u32(unit);
        return {load16_once(w.elements + 64 * at + 16 * c), load16(reinterpret_cast<const u32*>(w.scales + at / 2 * 16))};
    }
    // Scales and minima 0 .. 3 are the low six bits of the first two words; of 4 .. 7 the low four are in the third, the
    // rest above those (`get_scale_min_k4` of ggml).
    DEVICE Scales scales(const Piece& piece, int unit) {
        const u32(&w)[4] = piece.head.at;
        bool second = unit % 2 == 1;
        u32 scales = second ? (w[3] & 0x0f0f0f0fu) | (w[1] >> 2 & 0x30303030u) : w[1] & 0x3f3f3f3fu;
        u32 minima = second ? (w[3] >> 4 & 0x0f0f0f0fu) | (w[2] >> 2 & 0x30303030u) : w[2] & 0x3f3f3f3fu;
        return {f16_to_f32(u16(w[0])), f16_to_f32(u16(w[0] >> 16)), scales, minima};
    }
    DEVICE void pairs(const Piece& piece, int b, int, u32 (&out)[4]) {
        for (int j = 0; j < 4; j++) out[j] = fma_bf16x2(nibble_pair(piece.words.at[b], j), BF16X2_ONE, BF16X2_NEGATIVE_128);
    }
    DEVICE float scale(const Scales& scales, int b, int) { return scales.d * float(scales.scales >> 8 * b & 0xff); }
    DEVICE float minimum(const Scales& scales, int b) { return -(scales.d_min * float(scales.minima >> 8 * b & 0xff)); }
};

struct FormatQ6_K : BlockFormat<FormatQ6_K> {
    static constexpr int SCALES = 2;
    static constexpr bool HALVES = true, HAS_MINIMUM = false;
    struct Piece {
        Packed<u32> words;
        Words2 high;
        Words2 scales;
        u16 d;
    };
    struct Scales {
        float d;
        Words2 scales;
    };

    DEVICE Piece load(const Weight& w, u32 start, int unit, int c) {
        u64 at = start + u32(unit);
        return {load16_once(w.elements + 64 * at + 16 * c), load8(w.high + 32 * at + 8 * c), load8(w.scales + 8 * at),
                reinterpret_cast<const u16*>(w.supers)[at / 2]};
    }
    DEVICE Scales scales(const Piece& piece, int) { return {f16_to_f32(piece.d), piece.scales}; }
    DEVICE void pairs(const Piece& piece, int b, int, u32 (&out)[4]) {
        for (int j = 0; j < 4; j++) {
            int at = 8 * (b % 2) + 2 * j;  // of the upper bits, which go to bit 4
            u32 high = piece.high.at[b / 2];
            high = at < 4 ? high << (4 - at) : high >> (at - 4);
            u32 bits = and_or(high, 0x00300030u, nibble_pair(piece.words.at[b], j));
            out[j] = fma_bf16x2(bits, BF16X2_ONE, BF16X2_NEGATIVE_160);
        }
    }
    DEVICE float scale(const Scales& scales, int b, int half) {
        return scales.d * float(i8(scales.scales.at[b / 2] >> (16 * (b % 2) + 8 * half)));
    }
};

// Calls Work::run<F>(args) with the format's type.
template <class Work, class Args>
DEVICE void with_format(int format, const Args& args) {
    switch (format) {
        case WEIGHT_F32: return Work::template run<FormatF32>(args);
        case WEIGHT_F16: return Work::template run<FormatF16>(args);
        case WEIGHT_BF16: return Work::template run<FormatBf16>(args);
        case WEIGHT_Q4_0: return Work::template run<FormatQ4_0>(args);
        case WEIGHT_Q4_1: return Work::template run<FormatQ4_1>(args);
        case WEIGHT_Q8_0: return Work::template run<FormatQ8_0>(args);
        case WEIGHT_Q4_K: return Work::template run<FormatQ4_K>(args);
        case WEIGHT_Q6_K: return Work::template run<FormatQ6_K>(args);
        case WEIGHT_F8: return Work::template run<FormatF8>(args);
    }
}
