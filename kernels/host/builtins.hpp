// What CUDA C++ has built in, and what kernel.cuh and mma.cuh have from PTX, on the machine of simt.hpp, which includes this.
#pragma once

// --- CUDA C++.

#define threadIdx (simt::here->current->idx)
#define blockIdx (simt::here->block_idx)
#define blockDim (simt::here->block_dim)
#define gridDim (simt::here->grid_dim)

#define __syncthreads() simt::block_barrier(__FILE__, __LINE__)
inline void __syncwarp(unsigned mask = 0xffffffffu) {
    char nothing;
    simt::warp_collective(mask, simt::Collective::Barrier, &nothing, [](void**) {});
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
    return simt::shuffle(mask, value, source & 31);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int with) {
    return simt::shuffle(mask, value, (simt::lane() ^ with) & 31);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int by) {
    return simt::shuffle(mask, value, simt::lane() >= by ? simt::lane() - by : simt::lane());
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int by) {
    return simt::shuffle(mask, value, simt::lane() + by < 32 ? simt::lane() + by : simt::lane());
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    struct Vote {
        int predicate;
        unsigned result;
    } mine{predicate, 0};
    simt::warp_collective(mask, simt::Collective::Ballot, &mine, [](void** arguments) {
        unsigned result = 0;
        for (unsigned i = 0; i < simt::LANES; i++) {
            if (arguments[i] && static_cast<Vote*>(arguments[i])->predicate) result |= 1u << i;
        }
        for (unsigned i = 0; i < simt::LANES; i++) {
            if (arguments[i]) static_cast<Vote*>(arguments[i])->result = result;
        }
    });
    return mine.result;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(unsigned(v)); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((unsigned long long)a * b >> 32); }
inline void __threadfence() {}

// Threads run one at a time: every access is atomic.
template <class T, class U>
T atomicAdd(T* at, U value) {
    T old = *at;
    *at = old + T(value);
    return old;
}
template <class T, class U>
T atomicMax(T* at, U value) {
    T old = *at;
    if (T(value) > old) *at = T(value);
    return old;
}
template <class T, class U>
T atomicMin(T* at, U value) {
    T old = *at;
    if (T(value) < old) *at = T(value);
    return old;
}
template <class T>
T atomicCAS(T* at, T compare, T value) {
    T old = *at;
    if (old == compare) *at = value;
    return old;
}

inline float rsqrtf(float v) { return 1.0f / sqrtf(v); }
inline float __expf(float v) { return expf(v); }
inline float __logf(float v) { return logf(v); }
inline float __fdividef(float a, float b) { return a / b; }
template <class T>
T min(T a, T b) {
    return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
    return a < b ? b : a;
}

// --- What kernel.cuh and mma.cuh have from PTX.

#define SHARED(T, name)                             \
    static const char name##_key = 0;               \
    T& name = *static_cast<T*>(simt::shared(&name##_key, sizeof(T)))
#define DYNAMIC_SHARED(name) unsigned char* name = simt::dynamic_shared()

// The body, what launches it, and the size of its arguments for whoever fills them in.
#define KERNEL(name, Args, threads)                                                                              \
    static void name##_body(const Args& args);                                                                   \
    extern "C" void name(Dim3 grid, Dim3 block, size_t shared_bytes, const void* args, unsigned seed) {          \
        if (block.x * block.y * block.z > (threads)) abort();                                                    \
        Args own = *static_cast<const Args*>(args);                                                              \
        simt::launch(#name, grid, block, shared_bytes, seed, [&] { name##_body(own); });                         \
    }                                                                                                            \
    extern "C" size_t name##_args_bytes() { return sizeof(Args); }                                               \
    static void name##_body(const Args& args)
#define KERNEL_RESIDENT(name, Args, threads, blocks) KERNEL(name, Args, threads)
#define KERNEL_EARLY(name, Args, threads, blocks) KERNEL(name, Args, threads)
// Kernels run one after the other here.
inline unsigned wait_for_inputs() { return 0; }
// What is asked for ahead has to exist here: AddressSanitizer looks.
inline void prefetch_line(const void* at) { (void)*static_cast<const volatile unsigned char*>(at); }

inline float bits_to_f32(uint32_t bits) {
    float v;
    memcpy(&v, &bits, 4);
    return v;
}
inline uint32_t f32_to_bits(float v) {
    uint32_t bits;
    memcpy(&bits, &v, 4);
    return bits;
}
inline float __uint_as_float(uint32_t bits) { return bits_to_f32(bits); }
inline uint32_t __float_as_uint(float v) { return f32_to_bits(v); }
inline uint16_t f32_to_bf16(float v) {
    uint32_t bits = f32_to_bits(v);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float f16_to_f32(uint16_t bits) {
    uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 31) return bits_to_f32(sign | 0x7f800000 | fraction << 13);
    if (exponent == 0) {
        float v = float(fraction) * bits_to_f32(0x33800000);  // 2^-24
        return sign ? -v : v;
    }
    return bits_to_f32(sign | (exponent + 112) << 23 | fraction << 13);
}
inline uint16_t f32_to_f16(float v) {
    uint32_t bits = f32_to_bits(v), sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return uint16_t(0x7fff);
    if (bits >= 0x477ff000) return uint16_t(sign | 0x7c00);  // 65520 and more
    if (bits < 0x38800000) {                                 // below 2^-14: a multiple of 2^-24, to nearest even
        float scaled = bits_to_f32(bits) * 16777216.0f;
        return uint16_t(sign | uint32_t(nearbyintf(scaled)));
    }
    bits += 0xfff + (bits >> 13 & 1);
    return uint16_t(sign | ((bits >> 13) - (112u << 10)));
}
inline float exp2_fast(float v) { return exp2f(v); }

inline void cp_async16(void* to, const void* from, int bytes = 16) {
    simt::check_alignment(static_cast<char*>(to), 16);
    if (bytes) simt::check_alignment(static_cast<const char*>(from), 16);
    simt::Thread& me = *simt::here->current;
    me.copies.push_back({to, from, bytes, me.num_groups, 16});
}
inline void cp_async4(void* to, const void* from, int bytes = 4) {
    simt::check_alignment(static_cast<char*>(to), 4);
    if (bytes) simt::check_alignment(static_cast<const char*>(from), 4);
    simt::Thread& me = *simt::here->current;
    me.copies.push_back({to, from, bytes, me.num_groups, 4});
}
inline void cp_async_commit() { ++simt::here->current->num_groups; }
namespace simt {
inline void wait_for_copies(unsigned newest, const char* file, int line) {
    // The last of all cannot be left out without leaving copies behind, which is found in any case.
    if (is_left_out(file, line)) return;
    Thread& me = *here->current;
    std::vector<PendingCopy> left;
    for (const PendingCopy& copy : me.copies) {
        if (copy.group + newest >= me.num_groups) {
            left.push_back(copy);
            continue;
        }
        memset(copy.to, 0, size_t(copy.size));
        memcpy(copy.to, copy.from, size_t(copy.bytes));
    }
    me.copies = std::move(left);
}
}  // namespace simt
// `cp_async_wait<1>()` as a macro that knows its line.
#define cp_async_wait simt::WaitAt{__FILE__, __LINE__}.template wait
namespace simt {
struct WaitAt {
    const char* file;
    int line;
    template <int N>
    void wait() const {
        wait_for_copies(N, file, line);
    }
};
}  // namespace simt

namespace simt {
struct LoadMatrix {
    const void* row;
    uint32_t* registers;
};
inline uint16_t element(const LoadMatrix& lane, unsigned col) {
    uint16_t v;
    memcpy(&v, static_cast<const char*>(lane.row) + 2 * col, 2);
    return v;
}
template <int N>
void load_matrices(uint32_t (&registers)[N], const void* row, bool transposed) {
    if (lane() < 8 * N) check_alignment(static_cast<const char*>(row), 16);
    LoadMatrix mine{row, registers};
    auto work = [transposed](void** arguments) {
        for (unsigned lane = 0; lane < LANES; lane++) {
            for (unsigned m = 0; m < N; m++) {
                uint32_t pair = 0;
                for (unsigned half = 0; half < 2; half++) {
                    unsigned r = lane / 4, c = lane % 4 * 2 + half;
                    if (transposed) std::swap(r, c);
                    pair |= uint32_t(element(*static_cast<LoadMatrix*>(arguments[8 * m + r]), c)) << (16 * half);
                }
                static_cast<LoadMatrix*>(arguments[lane])->registers[m] = pair;
            }
        }
    };
    warp_collective(0xffffffffu, Collective::LoadMatrix, &mine, work);
}

struct MultiplyAdd {
    float* d;
    const uint32_t *a, *b;
};
template <float (*TO_F32)(uint16_t)>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    MultiplyAdd mine{d, a, b};
    warp_collective(0xffffffffu, Collective::MultiplyAdd, &mine, [](void** arguments) {
        float a[16][16], b[8][16];
        for (unsigned lane = 0; lane < LANES; lane++) {
            auto* from = static_cast<MultiplyAdd*>(arguments[lane]);
            unsigned row = lane / 4, col = lane % 4 * 2;
            for (unsigned half = 0; half < 2; half++) {
                for (unsigned i = 0; i < 4; i++) a[row + i % 2 * 8][col + half + i / 2 * 8] = TO_F32(uint16_t(from->a[i] >> 16 * half));
                for (unsigned i = 0; i < 2; i++) b[row][col + half + i * 8] = TO_F32(uint16_t(from->b[i] >> 16 * half));
            }
        }
        for (unsigned lane = 0; lane < LANES; lane++) {
            auto* to = static_cast<MultiplyAdd*>(arguments[lane]);
            for (unsigned i = 0; i < 4; i++) {
                unsigned row = lane / 4 + i / 2 * 8, col = lane % 4 * 2 + i % 2;
                float sum = 0.0f;
                for (unsigned k = 0; k < 16; k++) sum += a[row][k] * b[col][k];
                to->d[i] += sum;
            }
        }
    });
}
inline float bf16_bits_to_f32(uint16_t bits) { return bits_to_f32(uint32_t(bits) << 16); }
inline float f16_bits_to_f32(uint16_t bits) { return f16_to_f32(bits); }
}  // namespace simt

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) { simt::load_matrices(r, row, false); }
inline void ldmatrix_x2(uint32_t (&r)[2], const void* row) { simt::load_matrices(r, row, false); }
inline void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* row) { simt::load_matrices(r, row, true); }
inline void ldmatrix_x2_transposed(uint32_t (&r)[2], const void* row) { simt::load_matrices(r, row, true); }
