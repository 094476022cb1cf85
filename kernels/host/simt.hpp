// A GPU's execution model on the CPU: kernels run as ordinary C++, a fiber for each thread, one block after the other.
//
// What it catches: a missing barrier or wait (threads run in random orders, some warps far ahead of others; shared memory is fresh and
// full of NaN for each block, and asynchronous copies land only when they are waited for), threads that leave a collective
// waiting, wrong masks, misaligned vector accesses, and, built with AddressSanitizer, every access outside an allocation.
// What it does not show: speed, bank conflicts, memory ordering between blocks, and anything that mma.sync does not have.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "fiber.hpp"

#define DEVICE static inline

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
};

namespace simt {

constexpr unsigned LANES = 32;

// The collectives of a warp, so that lanes in different ones are told.
enum class Collective { Barrier, Shuffle, Ballot, LoadMatrix, MultiplyAdd };

enum class State { Running, WaitsForWarp, WaitsForBlock, Done };

// An asynchronous copy that has begun.
struct PendingCopy {
    void* to;
    const void* from;
    int bytes;  // the others of `size` become zeros
    unsigned group;
    int size;
};

struct Thread {
    Fiber fiber;
    Dim3 idx;
    unsigned linear_idx = 0;
    State state = State::Running;
    // The warp collective in which it waits: its lanes, its kind, and what this lane brings.
    unsigned mask = 0;
    Collective collective{};
    void* argument = nullptr;
    unsigned num_groups = 0;
    std::vector<PendingCopy> copies;
};

// The block that runs.
struct Machine {
    std::vector<std::unique_ptr<Thread>> threads;
    Thread* current = nullptr;
    unsigned num_threads = 0;
    Dim3 block_idx, block_dim, grid_dim;
    std::function<void()> body;
    std::vector<unsigned char> dynamic_shared;
    std::map<const void*, std::vector<unsigned char>> shared;
    std::string kernel;
};

// The machine of the kernel that runs on this thread of the CPU; those that are done wait for the next launch.
inline thread_local Machine* here = nullptr;
inline std::mutex idle_lock;
inline std::vector<std::unique_ptr<Machine>> idle;

inline std::unique_ptr<Machine> take_machine() {
    std::lock_guard<std::mutex> guard(idle_lock);
    if (idle.empty()) return std::make_unique<Machine>();
    std::unique_ptr<Machine> machine = std::move(idle.back());
    idle.pop_back();
    return machine;
}

inline void give_back(std::unique_ptr<Machine> machine) {
    std::lock_guard<std::mutex> guard(idle_lock);
    idle.push_back(std::move(machine));
}

[[noreturn]] inline void fail(const std::string& what) {
    const Dim3& b = here->block_idx;
    fprintf(stderr, "%s, block (%u, %u, %u)", here->kernel.c_str(), b.x, b.y, b.z);
    if (here->current) fprintf(stderr, ", thread %u", here->current->linear_idx);
    fprintf(stderr, ": %s\n", what.c_str());
    abort();
}

// `NAME.cu:LINE` of a barrier or wait that is to be left out: a test's planted fault.
inline bool is_left_out(const char* file, int line) {
    static const char* wanted = getenv("SIMT_LEAVE_OUT");
    if (!wanted) return false;
    const char* name = strrchr(file, '/');
    return std::string(name ? name + 1 : file) + ":" + std::to_string(line) == wanted;
}

inline void yield() { here->current->fiber.leave(); }

// A collective of the lanes in `mask`: each brings `argument`; the last to come does the work for all.
template <class Work>
void warp_collective(unsigned mask, Collective collective, void* argument, Work work) {
    Thread& me = *here->current;
    unsigned first = me.linear_idx / LANES * LANES;
    if (!(mask >> (me.linear_idx % LANES) & 1)) fail("a lane calls a collective that its mask leaves out");
    me.mask = mask;
    me.collective = collective;
    me.argument = argument;
    me.state = State::WaitsForWarp;
    void* arguments[LANES] = {};
    for (unsigned lane = 0; lane < LANES; lane++) {
        if (!(mask >> lane & 1)) continue;
        if (first + lane >= here->num_threads) fail("a mask names a lane past the end of the block");
        Thread& other = *here->threads[first + lane];
        if (other.state == State::Done) fail("a mask names a lane that has ended");
        if (other.state != State::WaitsForWarp || other.mask != mask) {
            yield();
            return;
        }
        if (other.collective != collective) fail("lanes of one mask are in different collectives");
        arguments[lane] = other.argument;
    }
    work(arguments);
    for (unsigned lane = 0; lane < LANES; lane++) {
        if (arguments[lane]) here->threads[first + lane]->state = State::Running;
    }
}

inline void block_barrier(const char* file, int line) {
    if (is_left_out(file, line)) return;
    here->current->state = State::WaitsForBlock;
    for (auto& thread : here->threads) {
        if (thread->state == State::Done) fail("a barrier after a thread has ended");
        if (thread->state != State::WaitsForBlock) {
            yield();
            return;
        }
    }
    for (auto& thread : here->threads) thread->state = State::Running;
}

// Shared memory of the block, by who asks for it.
inline void* shared(const void* key, size_t bytes) {
    auto& memory = here->shared[key];
    if (memory.empty()) memory.assign(bytes, 0xff);
    return memory.data();
}

inline unsigned char* dynamic_shared() { return here->dynamic_shared.data(); }

inline void run_thread() {
    here->body();
    here->current->state = State::Done;
}

inline void prepare_block(size_t dynamic_shared_bytes) {
    // Fresh allocations, so that AddressSanitizer sees an overrun; all bits set is NaN in every float format.
    here->shared.clear();
    here->dynamic_shared = std::vector<unsigned char>(dynamic_shared_bytes, 0xff);
    Dim3 dim = here->block_dim;
    for (unsigned i = 0; i < here->num_threads; i++) {
        Thread& thread = *here->threads[i];
        thread.linear_idx = i;
        thread.idx = {i % dim.x, i / dim.x % dim.y, i / (dim.x * dim.y)};
        thread.state = State::Running;
        thread.num_groups = 0;
        thread.copies.clear();
        thread.fiber.start(run_thread);
    }
}

// In order; or, with `random`, some warps as far as they come before others run at all, and their threads in random orders.
inline void run_block(std::mt19937* random) {
    std::vector<unsigned> order(here->num_threads);
    for (unsigned i = 0; i < here->num_threads; i++) order[i] = i;
    uint32_t runs = random ? (*random)() : 0xffffffff;
    for (;;) {
        bool any_ran = false, any_can_run = false, any_left = false;
        for (unsigned i = here->num_threads - 1; random && i > 0; i--) std::swap(order[i], order[(*random)() % (i + 1)]);
        for (unsigned i : order) {
            Thread& thread = *here->threads[i];
            any_left |= thread.state != State::Done;
            if (thread.state != State::Running) continue;
            any_can_run = true;
            if (!(runs >> (i / LANES) & 1)) continue;
            any_ran = true;
            here->current = &thread;
            thread.fiber.enter();
        }
        here->current = nullptr;
        if (!any_left) break;
        if (!any_can_run) fail("every thread waits");
        if (random && !any_ran) runs = (*random)();
    }
    for (auto& thread : here->threads) {
        if (!thread->copies.empty()) fail("an asynchronous copy was never waited for");
    }
}

// Runs a kernel. With seed 0 threads run in order, with another one in a random and unfair one.
inline void launch(const char* kernel, Dim3 grid, Dim3 block, size_t dynamic_shared_bytes, unsigned seed,
                   std::function<void()> body) {
    std::unique_ptr<Machine> own = take_machine();
    here = own.get();
    here->kernel = kernel;
    here->num_threads = block.x * block.y * block.z;
    here->grid_dim = grid;
    here->block_dim = block;
    here->body = std::move(body);
    if (here->num_threads == 0 || here->num_threads > 1024) fail("a block of " + std::to_string(here->num_threads) + " threads");
    if (dynamic_shared_bytes > 227 * 1024) fail("more shared memory than a GPU has");
    here->threads.resize(here->num_threads);
    for (auto& thread : here->threads) {
        if (!thread) thread = std::make_unique<Thread>();
    }
    std::mt19937 random(seed);
    for (unsigned z = 0; z < grid.z; z++) {
        for (unsigned y = 0; y < grid.y; y++) {
            for (unsigned x = 0; x < grid.x; x++) {
                here->block_idx = {x, y, z};
                prepare_block(dynamic_shared_bytes);
                run_block(seed ? &random : nullptr);
            }
        }
    }
    here = nullptr;
    give_back(std::move(own));
}

struct Shuffle {
    unsigned char value[8];
    int source;
    unsigned char result[8];
};

template <class T>
T shuffle(unsigned mask, T value, int source) {
    static_assert(sizeof(T) <= 8, "shuffles move up to 8 bytes");
    Shuffle mine{};
    memcpy(mine.value, &value, sizeof(T));
    mine.source = source;
    warp_collective(mask, Collective::Shuffle, &mine, [](void** arguments) {
        for (unsigned lane = 0; lane < LANES; lane++) {
            if (!arguments[lane]) continue;
            auto* to = static_cast<Shuffle*>(arguments[lane]);
            auto* from = static_cast<Shuffle*>(arguments[to->source & 31]);
            if (!from) fail("a shuffle reads a lane that does not take part");
            memcpy(to->result, from->value, sizeof(to->result));
        }
    });
    T result;
    memcpy(&result, mine.result, sizeof(T));
    return result;
}

inline int lane() { return int(here->current->linear_idx % LANES); }

// A packed access must be aligned, as on the GPU.
template <class T>
void check_alignment(const T* p, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(p) % bytes) fail("a misaligned access of " + std::to_string(bytes) + " bytes");
}

}  // namespace simt

// --- What CUDA C++ has built in.

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
