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

#include "builtins.hpp"
