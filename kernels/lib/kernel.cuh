// What every kernel is written with: types, memory spaces, reductions. On the host (WARDROBE_HOST) host/simt.hpp stands in
// for the GPU, so that one source is compiled by NVRTC, by nvcc and by a C++ compiler. No header of CUDA is needed.
#pragma once

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#ifdef WARDROBE_HOST
#include "../host/simt.hpp"
#else

// From sm_90 on a kernel is on the card before those ahead of it in the stream have ended (programmatic dependent launch, CUDA C++
// programming guide). It lets the next one come when all of its blocks run, and touches nothing that others write before
// wait_for_inputs. Every kernel has to wait, if only at its end: who comes after it relies on that.
// Returns 0: an address that it was added to is not read before, not by assembly either that is free to move.
__device__ __forceinline__ u32 wait_for_inputs() {
    u32 zero = 0;
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;\nmov.u32 %0, 0;" : "=r"(zero)::"memory");
#endif
    return zero;
}
__device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

#define ENTRY_POINT(name, Args, bounds, begin)                              \
    static __device__ __forceinline__ void name##_body(const Args& args);   \
    extern "C" __global__ void bounds name(const __grid_constant__ Args args) { \
        begin;                                                              \
        name##_body(args);                                                  \
    }                                                                       \
    static __device__ __forceinline__ void name##_body(const Args& args)
// KERNEL(name, Args, threads) { ... }: an entry point over one struct of arguments, `args`, for blocks of at most `threads`.
#define KERNEL(name, Args, threads) \
    ENTRY_POINT(name, Args, __launch_bounds__(threads), (let_next_begin(), wait_for_inputs()))
// The same with no more registers than let `blocks` blocks be on a multiprocessor together.
#define KERNEL_RESIDENT(name, Args, threads, blocks) \
    ENTRY_POINT(name, Args, __launch_bounds__(threads COMMA blocks), (let_next_begin(), wait_for_inputs()))
// The same, but all of its threads call wait_for_inputs themselves, after what they can do before: a step's inputs, weights and
// adapters are there all along.
#define KERNEL_EARLY(name, Args, threads, blocks) \
    ENTRY_POINT(name, Args, __launch_bounds__(threads COMMA blocks), let_next_begin())
#define COMMA ,

// A struct in the block's shared memory, whose contents are anything at first.
#define SHARED(T, name)                                           \
    __shared__ __align__(16) unsigned char name##_bytes[sizeof(T)]; \
    T& name = *reinterpret_cast<T*>(name##_bytes)

// The shared memory whose size the launch gives, 16-byte aligned; one a kernel.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

#define DEVICE static __device__ __forceinline__

DEVICE float bits_to_f32(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 f32_to_bits(float v) { return __float_as_uint(v); }
DEVICE float f16_to_f32(u16 bits) {
    float v;
    asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(bits));
    return v;
}
DEVICE u16 f32_to_f16(float v) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));
    return bits;
}
DEVICE u16 f32_to_bf16(float v) {
    u16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(v));
    return bits;
}
// Asks for a line of memory ahead, to the L2 cache. Never a fault; the address has to be the weight's or factor's own all the same.
DEVICE void prefetch_line(const void* at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }
// exp2 of the special function unit; 2 ulp (PTX ISA, ex2.approx).
DEVICE float exp2_fast(float v) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}
#endif

#define LINE_BYTES 128
#define WARP_LANES 32
#define FULL_WARP 0xffffffffu
#define INFINITY_F32 bits_to_f32(0x7f800000u)
#define LOG2_E 1.4426950408889634f

// 16-bit floats, as their bits.
struct bf16 {
    u16 bits;
};
struct f16 {
    u16 bits;
};

// Conversions by name, for templates over element types.
DEVICE float to_f32(float v) { return v; }
DEVICE float to_f32(bf16 v) { return bits_to_f32(u32(v.bits) << 16); }
DEVICE float to_f32(f16 v) { return f16_to_f32(v.bits); }
template <class T>
struct From;
template <>
struct From<float> {
    DEVICE float f32(float v) { return v; }
};
template <>
struct From<bf16> {
    DEVICE bf16 f32(float v) { return bf16{f32_to_bf16(v)}; }
};
template <>
struct From<f16> {
    DEVICE f16 f32(float v) { return f16{f32_to_f16(v)}; }
};
// `From<T>::f32(v)`, shorter.
template <class T>
DEVICE T from_f32(float v) {
    return From<T>::f32(v);
}

// `p`, known to point to device memory. The compiler sees that of arguments, but not of pointers that were loaded from memory, whose
// accesses it would make generic: they may alias shared memory.
template <class T>
DEVICE T* in_global(T* p) {
#ifndef WARDROBE_HOST
    __builtin_assume(__isGlobal(p));
#endif
    return p;
}

// 16 bytes of memory in one access.
template <class T>
struct alignas(16) Packed {
    static constexpr int LEN = 16 / sizeof(T);
    T at[LEN];
};
#ifndef WARDROBE_HOST
DEVICE void check_aligned16(const void*) {}
#else
DEVICE void check_aligned16(const void* p) { simt::check_alignment(static_cast<const char*>(p), 16); }
#endif
template <class T>
DEVICE Packed<T> load16(const T* from) {
    check_aligned16(from);
    return *reinterpret_cast<const Packed<T>*>(from);
}
template <class T>
DEVICE void store16(T* to, const Packed<T>& v) {
    check_aligned16(to);
    *reinterpret_cast<Packed<T>*>(to) = v;
}

DEVICE bool is_aligned16(const void* p) { return (reinterpret_cast<u64>(p) & 15) == 0; }
// The first `count` (any number) of four floats, in one access if all exist and the address allows it; the others load as 0.
DEVICE void load_up_to4(float (&v)[4], const float* from, i64 count) {
    if (count >= 4 && is_aligned16(from)) {
        Packed<float> whole = load16(from);
        for (int i = 0; i < 4; i++) v[i] = whole.at[i];
        return;
    }
    for (int i = 0; i < 4; i++) v[i] = i < count ? from[i] : 0.0f;
}
DEVICE void store_up_to4(float* to, const float (&v)[4], i64 count) {
    if (count >= 4 && is_aligned16(to)) {
        store16(to, Packed<float>{{v[0], v[1], v[2], v[3]}});
        return;
    }
    for (int i = 0; i < 4; i++) {
        if (i < count) to[i] = v[i];
    }
}

// Element types that are known at run time only; the twin of `DType` in crates/device-cuda.
enum ElementType { F32 = 0, BF16 = 1, F16 = 2 };
DEVICE void store_element(void* to, u64 i, float v, int type) {
    if (type == F32) static_cast<float*>(to)[i] = v;
    else if (type == BF16) static_cast<bf16*>(to)[i] = from_f32<bf16>(v);
    else static_cast<f16*>(to)[i] = from_f32<f16>(v);
}
DEVICE float load_element(const void* from, u64 i, int type) {
    if (type == F32) return static_cast<const float*>(from)[i];
    if (type == BF16) return to_f32(static_cast<const bf16*>(from)[i]);
    return to_f32(static_cast<const f16*>(from)[i]);
}

DEVICE int ceil_div(int a, int b) { return (a + b - 1) / b; }
DEVICE int lane_idx() { return int(threadIdx.x) & (WARP_LANES - 1); }
DEVICE int warp_idx() { return int(threadIdx.x) / WARP_LANES; }

// The sum, or maximum, over a warp, in every lane; the same order of additions whatever the values.
DEVICE float warp_sum(float v) {
    for (int offset = WARP_LANES / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(FULL_WARP, v, offset);
    return v;
}
DEVICE float warp_max(float v) {
    for (int offset = WARP_LANES / 2; offset > 0; offset /= 2) {
        float other = __shfl_xor_sync(FULL_WARP, v, offset);
        v = other > v ? other : v;
    }
    return v;
}

// Room for reductions over a block of up to 1024 threads in one dimension.
struct BlockReduction {
    float of_warp[WARP_LANES];
};
// The sum over a block whose threads are a multiple of 32, in every thread. Begins and ends with a barrier.
DEVICE float block_sum(float v, BlockReduction& room) {
    v = warp_sum(v);
    __syncthreads();
    if (lane_idx() == 0) room.of_warp[warp_idx()] = v;
    __syncthreads();
    int warps = int(blockDim.x) / WARP_LANES;
    return warp_sum(lane_idx() < warps ? room.of_warp[lane_idx()] : 0.0f);
}
DEVICE float block_max(float v, BlockReduction& room) {
    v = warp_max(v);
    __syncthreads();
    if (lane_idx() == 0) room.of_warp[warp_idx()] = v;
    __syncthreads();
    int warps = int(blockDim.x) / WARP_LANES;
    return warp_max(lane_idx() < warps ? room.of_warp[lane_idx()] : -INFINITY_F32);
}

// Some adjacent rows of one sequence of a batch, for a block.
struct SequenceTile {
    int start;  // the sequence's first row
    int len;    // its number of rows
    int first;  // the tile's first row in the sequence; none if not below len
};
// The tile of a slot. Sequence s has the slots from seq_starts[s] / tile_rows + s on, one a tile and at most one too many, so
// that num_rows / tile_rows + num_seqs slots are enough for any lengths. A whole warp asks; each round leaves a 32nd of the
// candidates.
DEVICE SequenceTile sequence_tile(const u32* seq_starts, int num_seqs, int tile_rows, int slot) {
    int seq = 0;
    for (int left = num_seqs; left > 1;) {
        const int step = ceil_div(left, WARP_LANES), candidate = lane_idx() * step;
        const bool begins = candidate < left && int(seq_starts[seq + candidate]) / tile_rows + seq + candidate <= slot;
        const int skipped = (__popc(__ballot_sync(FULL_WARP, begins)) - 1) * step;
        seq += skipped;
        left = min(step, left - skipped);
    }
    const int start = int(seq_starts[seq]);
    return {start, int(seq_starts[seq + 1]) - start, (slot - start / tile_rows - seq) * tile_rows};
}
