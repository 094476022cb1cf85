// What the LoRA kernels (Hu et al., arXiv 2106.09685) share: the table of adapters, a launch's arguments, and how rows
// are dealt out.
//
// An update has two launches over one LoraArgs: "shrink" writes partial sums of x Aᵀ to `low`, one for each split of
// the inputs, and "expand" adds the splits up in order, multiplies with Bᵀ and updates `out`. lora.cu works row by row
// and reads each row's own factors (decoding; BGMV of Punica, arXiv 2310.18547). lora_mma.cu works on runs of rows with
// one slot (prompts, training; SGMV there). A step that has both kinds of rows takes four launches: those of
// lora_mma.cu with `long_run` set, which pass over shorter runs, and those of lora.cu with `list`, the rows of these
// runs. Rows without an adapter for a target are not touched.
#pragma once
#include "kernel.cuh"

// An adapter's factors for one module.
struct LoraEntry {
    const void* a;           // A transposed, [cols, rank]
    const void* b;           // [features, rank] in panels of 16 features (fewer at the end), each [rank, features]
    const float* out_scale;  // [features], DoRA's factor (Liu et al., arXiv 2402.09353); or null
    float scale;
    u32 rank;  // 0: the slot leaves the module alone, and the rest is anything
    u32 type;  // ElementType of a and b
    u32 unused;
};

// One of the linear layers that share a launch.
struct LoraTarget {
    const void* x;          // [rows, cols] of x_type: what the adapters read
    float* out;             // [rows, features], 16-byte aligned; holds the layer's product with bias and residual
    const float* bias;      // [features], or null; read for DoRA alone, as residual
    const float* residual;  // [rows, features], or null; not out
    u64 x_stride;           // elements from row to row of x
    u32 module;             // which column of `entries`
    int features;
    int x_type;  // ElementType
    int unused;
};

struct LoraArgs {
    LoraTarget targets[3];
    const LoraEntry* entries;  // [slots, num_modules]
    const u32* slots;          // [rows]; NO_SLOT without an adapter
    const float* scales;       // [rows], factors on the adapters' scales
    float* low;                // [splits, rows, num_targets, max_rank], 16-byte aligned; workspace
    const u32* list;           // lora.cu: how many rows to do, then these, as lora_short_rows has them; null: all rows
    int num_targets;
    int num_modules;
    int rows;
    int cols;
    int splits;     // ceil(cols / split_len)
    int split_len;  // inputs a split: a multiple of 32; for lora.cu at most 512
    int max_rank;   // row length of `low`: at least the largest rank, and a multiple of 4
    int long_run;   // lora_mma.cu: takes runs of at least so many rows
};

#define NO_SLOT 0xffffffffu
// Rows of a tile of lora_mma.cu. Runs of one slot end at multiples of it.
#define TILE_ROWS 64

// The factors of a target for a slot, with rank 0 if there are none.
DEVICE LoraEntry lora_entry(const LoraArgs& args, const LoraTarget& target, u32 slot) {
    if (slot != NO_SLOT) return args.entries[u64(slot) * u32(args.num_modules) + target.module];
    LoraEntry none = {};
    return none;
}

// Where the partial sums of a row and target begin in `low`.
DEVICE u64 low_start(const LoraArgs& args, int split, int row, int target) {
    return ((u64(split) * u32(args.rows) + u32(row)) * u32(args.num_targets) + u32(target)) * u32(args.max_rank);
}

// What DoRA's factor leaves out: bias and residual of an element of `out`.
DEVICE float unscaled_part(const LoraTarget& target, int row, int feature) {
    float sum = target.bias ? target.bias[feature] : 0.0f;
    if (target.residual) sum += target.residual[u64(row) * u32(target.features) + u32(feature)];
    return sum;
}

// Elements as they lie in memory are held in words, because the compiler gives each variable of 16 bits a register of
// its own.
DEVICE u32 element_bits(float v) { return f32_to_bits(v); }
DEVICE u32 element_bits(bf16 v) { return v.bits; }
DEVICE u32 element_bits(f16 v) { return v.bits; }
// Element i of words that hold elements of the last argument's type.
DEVICE float word_to_f32(const u32* words, int i, float) { return bits_to_f32(words[i]); }
DEVICE float word_to_f32(const u32* words, int i, bf16) {
    return bits_to_f32(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
}
DEVICE float word_to_f32(const u32* words, int i, f16) { return f16_to_f32(u16(words[i / 2] >> i % 2 * 16)); }

// 16 bytes of elements of T: all of them, from an aligned address, or the first `valid` (any number), the others 0.
template <class T>
DEVICE Packed<u32> load_packet(const T* from, bool all, int valid) {
    if (all) return load16(reinterpret_cast<const u32*>(from));
    Packed<u32> packet = {};
#pragma unroll
    for (int i = 0; i < Packed<T>::LEN; i++) {
        if (i < valid) packet.at[i * sizeof(T) / 4] |= element_bits(from[i]) << i * sizeof(T) % 4 * 8;
    }
    return packet;
}

// Two adjacent outputs of a row, the first at an even place; those past the last feature are 0, or not stored.
struct alignas(8) OutputPair {
    float at[2];
};
DEVICE OutputPair load_outputs(const LoraTarget& target, int row, int feature) {
    const float* from = target.out + u64(row) * u32(target.features) + u32(feature);
    if (target.features % 2 == 0 && feature < target.features) return *reinterpret_cast<const OutputPair*>(from);
    OutputPair pair;
    for (int i = 0; i < 2; i++) pair.at[i] = feature + i < target.features ? from[i] : 0.0f;
    return pair;
}
DEVICE void store_outputs(const LoraTarget& target, int row, int feature, const OutputPair& pair) {
    float* to = target.out + u64(row) * u32(target.features) + u32(feature);
    if (target.features % 2 == 0 && feature < target.features) {
        *reinterpret_cast<OutputPair*>(to) = pair;
        return;
    }
    for (int i = 0; i < 2; i++) {
        if (feature + i < target.features) to[i] = pair.at[i];
    }
}

// Bit i: whether row `first` + i begins a run of rows with one slot. Rows past the end count as without a slot. All
// lanes of a warp.
DEVICE u64 run_starts(const u32* slots, int rows, int first) {
    int lane = lane_idx(), row = first + lane;
    u32 lower = row < rows ? slots[row] : NO_SLOT;
    u32 upper = row + WARP_LANES < rows ? slots[row + WARP_LANES] : NO_SLOT;
    u32 before_lower = __shfl_up_sync(FULL_WARP, lower, 1);
    u32 before_upper = __shfl_up_sync(FULL_WARP, upper, 1), last_lower = __shfl_sync(FULL_WARP, lower, WARP_LANES - 1);
    if (lane == 0) before_upper = last_lower;
    u32 starts_lower = __ballot_sync(FULL_WARP, lane == 0 || lower != before_lower);
    u32 starts_upper = __ballot_sync(FULL_WARP, upper != before_upper);
    return u64(starts_upper) << 32 | starts_lower;
}

// The end of the run that begins at `start` of a tile.
DEVICE int run_end(u64 starts, int start) {
    int end = start + 1;
    while (end < TILE_ROWS && !(starts >> end & 1)) end++;
    return end;
}
