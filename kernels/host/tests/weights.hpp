// Weights for tests: blocks as they lie in files, what they mean by ggml's definition, and their planes, packed from what
// lib/weight.cuh says. Shares no code with kernels.
#pragma once

#include "check.hpp"

struct FormatInfo {
    int format;
    const char* name;
    int block_len;    // weights of a block in the file
    int block_bytes;  // its bytes
};
// F8 is made of rows of bf16.
static const FormatInfo FORMATS[] = {
    {WEIGHT_F32, "f32", 1, 4},       {WEIGHT_F16, "f16", 1, 2},       {WEIGHT_BF16, "bf16", 1, 2},
    {WEIGHT_Q4_0, "q4_0", 32, 18},   {WEIGHT_Q4_1, "q4_1", 32, 20},   {WEIGHT_Q8_0, "q8_0", 32, 34},
    {WEIGHT_Q4_K, "q4_k", 256, 144}, {WEIGHT_Q6_K, "q6_k", 256, 210}, {WEIGHT_F8, "f8", 1, 2},
};

inline uint16_t u16_at(const uint8_t* p) { return uint16_t(p[0] | p[1] << 8); }
inline double f16_value(const uint8_t* p) {
    uint16_t bits = u16_at(p);
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double v = exponent == 31 ? (fraction ? NAN : INFINITY)
               : exponent     ? std::ldexp(1024 + fraction, exponent - 25)
                              : std::ldexp(fraction, -24);
    return bits >> 15 ? -v : v;
}
inline float f32_of(uint32_t bits) {
    float v;
    memcpy(&v, &bits, 4);
    return v;
}

// Scale and minimum of the file's block Q4_K (`get_scale_min_k4`).
inline void scale_min_k4(int j, const uint8_t* q, int& scale, int& minimum) {
    if (j < 4) {
        scale = q[j] & 63;
        minimum = q[j + 4] & 63;
    } else {
        scale = (q[j + 4] & 15) | (q[j - 4] >> 6) << 4;
        minimum = (q[j + 4] >> 4) | (q[j] >> 6) << 4;
    }
}

// The quant of weight i of a file's block, as stored.
inline int quant(int format, const uint8_t* block, int i) {
    switch (format) {
        case WEIGHT_Q4_0: return block[2 + i % 16] >> (i < 16 ? 0 : 4) & 15;
        case WEIGHT_Q4_1: return block[4 + i % 16] >> (i < 16 ? 0 : 4) & 15;
        case WEIGHT_Q8_0: return int8_t(block[2 + i]);
        case WEIGHT_Q4_K: return block[16 + i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
        default: {
            int half = i / 128, quarter = i / 32 % 4, l = i % 32;
            int low = block[64 * half + quarter % 2 * 32 + l] >> (quarter / 2 * 4) & 15;
            return low | (block[128 + 32 * half + l] >> 2 * quarter & 3) << 4;
        }
    }
}

// Weight i of a file's block, as a float: all products are exact, so f64 rounds once where f32 does.
inline float block_value(int format, const uint8_t* block, int i) {
    int scale = 0, minimum = 0;
    switch (format) {
        case WEIGHT_F32: return f32_of(uint32_t(u16_at(block)) | uint32_t(u16_at(block + 2)) << 16);
        case WEIGHT_F16: return float(f16_value(block));
        case WEIGHT_BF16: return f32_of(uint32_t(u16_at(block)) << 16);
        case WEIGHT_Q4_0: return float(f16_value(block) * (quant(format, block, i) - 8));
        case WEIGHT_Q4_1: return float(f16_value(block) * quant(format, block, i) + f16_value(block + 2));
        case WEIGHT_Q8_0: return float(f16_value(block) * quant(format, block, i));
        case WEIGHT_Q4_K:
            scale_min_k4(i / 32, block + 4, scale, minimum);
            return float(f16_value(block) * scale * quant(format, block, i) - f16_value(block + 2) * minimum);
        default: return float(f16_value(block + 208) * int8_t(block[192 + i / 16]) * (quant(format, block, i) - 32));
    }
}

// --- F8.

inline double e4m3_value(int bits) {
    int exponent = bits >> 3 & 15, fraction = bits & 7;
    double v = exponent ? std::ldexp(8 + fraction, exponent - 10) : std::ldexp(fraction, -9);
    return bits >> 7 ? -v : v;
}
// The nearest, of two the even one; at most 448.
inline int e4m3_of(float v) {
    int best = 0;
    for (int bits = 0; bits < 127; bits++) {
        double distance = std::fabs(std::fabs(double(v)) - e4m3_value(bits)),
               least = std::fabs(std::fabs(double(v)) - e4m3_value(best));
        if (distance < least || (distance == least && bits % 2 == 0)) best = bits;
    }
    return best | (std::signbit(v) ? 128 : 0);
}
// A row's scale takes its largest to 448.
inline float f8_scale(const float* row, int cols) {
    float largest = 0.0f;
    for (int i = 0; i < cols; i++) largest = std::fmax(largest, std::fabs(row[i]));
    return std::fmax(largest / 448.0f, 0x1p-126f);
}

// --- A weight.

// Its rows as in a file, and their values.
struct HostWeight {
    FormatInfo info;
    int rows, cols;
    std::vector<uint8_t> bytes;
    std::vector<float> values;
    std::vector<float> f8_scales;
    std::vector<uint8_t> f8_elements;

    const uint8_t* block(int row, int col) const {
        return bytes.data() + (size_t(row) * (cols / info.block_len) + col / info.block_len) * info.block_bytes;
    }
    float value(int row, int col) const { return values[size_t(row) * cols + col]; }

    HostWeight(FormatInfo info, int rows, int cols, std::vector<uint8_t> from)
        : info(info), rows(rows), cols(cols), bytes(std::move(from)) {
        for (int r = 0; r < rows; r++) {
            for (int c = 0; c < cols; c++) {
                int format = info.format == WEIGHT_F8 ? int(WEIGHT_BF16) : info.format;
                values.push_back(block_value(format, block(r, c), c % info.block_len));
            }
            if (info.format == WEIGHT_F8) round_row(r);
        }
    }

private:
    void round_row(int r) {
        float* row = values.data() + size_t(r) * cols;
        float scale = f8_scale(row, cols);
        f8_scales.push_back(scale);
        for (int c = 0; c < cols; c++) {
            f8_elements.push_back(uint8_t(e4m3_of(row[c] / scale)));
            row[c] = scale * float(e4m3_value(f8_elements.back()));
        }
    }
};

inline size_t file_bytes(const FormatInfo& info, int rows, int cols) {
    return size_t(rows) * (cols / info.block_len) * info.block_bytes;
}

// Any bytes; floats that F8 is made of are below 2.
inline std::vector<uint8_t> random_bytes(Random& random, const FormatInfo& info, int rows, int cols) {
    std::vector<uint8_t> bytes(file_bytes(info, rows, cols));
    for (size_t i = 0; i < bytes.size(); i++) {
        bytes[i] = uint8_t(random.bits());
        if (info.format == WEIGHT_F8 && i % 2 == 1) bytes[i] &= 0xbf;
    }
    return bytes;
}

// Quants are any; scales are of many magnitudes, zeros and subnormal numbers too.
inline uint16_t random_scale(Random& random, float largest) {
    switch (random.below(8)) {
        case 0: return 0;
        case 1: return 0x8000;
        case 2: return uint16_t(1 + random.below(1023));
        case 3: return f32_to_f16(random.range(-largest, 0.0f));
        default: return f32_to_f16(random.range(0.0f, largest));
    }
}
inline HostWeight random_weight(Random& random, const FormatInfo& info, int rows, int cols) {
    std::vector<uint8_t> bytes = random_bytes(random, info, rows, cols);
    auto put = [](uint8_t* at, uint32_t bits, int len) {
        for (int i = 0; i < len; i++) at[i] = uint8_t(bits >> 8 * i);
    };
    for (size_t i = 0; i < bytes.size(); i += size_t(info.block_bytes)) {
        uint8_t* b = &bytes[i];
        float v = random.range(-0.3f, 0.3f);
        switch (info.format) {
            case WEIGHT_F32: put(b, f32_to_bits(v), 4); break;
            case WEIGHT_F16: put(b, random.below(8) ? f32_to_f16(v) : random_scale(random, 1.0f), 2); break;
            case WEIGHT_BF16: put(b, f32_to_bf16(v), 2); break;
            case WEIGHT_F8: put(b, f32_to_bf16(random.below(8) ? v : v * 0.01f), 2); break;
            case WEIGHT_Q4_1:
                put(b + 2, random_scale(random, 0.3f), 2);
                put(b, random_scale(random, 0.05f), 2);
                break;
            case WEIGHT_Q4_K:
                put(b + 2, random_scale(random, 0.005f), 2);
                put(b, random_scale(random, 0.001f), 2);
                break;
            case WEIGHT_Q6_K: put(b + 208, random_scale(random, 1e-4f), 2); break;
            default: put(b, random_scale(random, 0.05f), 2); break;
        }
    }
    return HostWeight(info, rows, cols, std::move(bytes));
}

// --- Its planes.

struct Planes {
    Buffer<uint8_t> elements, scales, high, supers;
    Weight weight;

    const Buffer<uint8_t>* all[4] = {&elements, &scales, &high, &supers};
    Planes(const HostWeight& w, size_t elements, size_t scales, size_t high, size_t supers)
        : elements(elements, 0), scales(scales, 0), high(high, 0), supers(supers, 0) {
        weight = {this->elements.get(),
                  this->scales.get(),
                  this->high.get(),
                  this->supers.get(),
                  w.rows,
                  w.cols,
                  w.info.format,
                  0};
    }
    Planes(const Planes&) = delete;
};

// Columns of e0 .. e7 of lane c in a block of 32.
inline int lane_col(int format, int c, int i) { return format == WEIGHT_Q6_K ? 16 * (i / 4) + 4 * c + i % 4 : 8 * c + i; }

inline std::unique_ptr<Planes> pack(const HostWeight& w) {
    int format = w.info.format;
    size_t rows = size_t(w.rows), blocks = size_t(w.cols + 127) / 128 * 4;
    if (format <= WEIGHT_BF16) {
        size_t bytes = size_t(w.info.block_bytes), row_bytes = size_t(w.cols + 7) / 8 * 8 * bytes;
        auto planes = std::make_unique<Planes>(w, rows * row_bytes, 0, 0, 0);
        for (size_t r = 0; r < rows; r++)
            memcpy(planes->elements.get() + r * row_bytes, w.block(int(r), 0), size_t(w.cols) * bytes);
        return planes;
    }
    bool is_byte = format == WEIGHT_Q8_0 || format == WEIGHT_F8;
    size_t scale_bytes = format == WEIGHT_F8 ? rows * 4 : rows * blocks * (format == WEIGHT_Q4_1 ? 4 : 2);
    size_t high_bytes = format == WEIGHT_Q6_K ? rows * blocks * 8 : 0;
    auto planes =
        std::make_unique<Planes>(w, rows * blocks * (is_byte ? 32 : 16), scale_bytes, high_bytes, high_bytes / 32);
    for (size_t r = 0; r < rows; r++) {
        if (format == WEIGHT_F8) memcpy(planes->scales.get() + 4 * r, &w.f8_scales[r], 4);
        for (int col = 0; col < w.cols; col++) {
            size_t unit = (r * blocks + size_t(col) / 32) / 4;
            int b = col / 32 % 4, c = 0, i = 0;
            while (lane_col(format, c, i) != col % 32) {
                if (++i == 8) c++, i = 0;
            }
            const uint8_t* block = w.block(int(r), col);
            if (is_byte) {
                const int places[8] = {0, 2, 1, 3, 4, 6, 5, 7};
                int q = format == WEIGHT_F8 ? w.f8_elements[r * size_t(w.cols) + size_t(col)] : block[2 + col % 32];
                planes->elements[128 * unit + size_t(64 * (b / 2) + 16 * c + 8 * (b % 2) + places[i])] = uint8_t(q);
            } else {
                int q = quant(format, block, col % w.info.block_len), bit = 16 * (i % 2) + 4 * (i / 2);
                planes->elements[64 * unit + size_t(16 * c + 4 * b + bit / 8)] |= uint8_t((q & 15) << bit % 8);
                if (format == WEIGHT_Q6_K) {
                    int at = 16 * (i % 2) + 8 * (b % 2) + 2 * (i / 2);
                    planes->high[32 * unit + size_t(8 * c + 4 * (b / 2) + at / 8)] |= uint8_t(q >> 4 << at % 8);
                }
            }
            if (col % w.info.block_len != 0) continue;
            uint8_t* scales = planes->scales.get();
            if (format == WEIGHT_Q4_0 || format == WEIGHT_Q8_0) memcpy(scales + 8 * unit + 2 * b, block, 2);
            if (format == WEIGHT_Q4_1) memcpy(scales + 16 * unit + 4 * b, block, 4);
            if (format == WEIGHT_Q4_K) memcpy(scales + 8 * unit, block, 16);
            if (format == WEIGHT_Q6_K) {
                memcpy(scales + 8 * unit, block + 192, 16);
                memcpy(planes->supers.get() + unit, block + 208, 2);
            }
        }
    }
    return planes;
}

// FNV-1a over all planes.
inline uint64_t hash_of(const Planes& planes) {
    uint64_t hash = 0xcbf29ce484222325ull;
    for (const Buffer<uint8_t>* plane : planes.all) {
        for (size_t i = 0; i < plane->size(); i++) hash = (hash ^ (*plane)[i]) * 0x100000001b3ull;
    }
    return hash;
}
