// A stack of its own for a function that is entered and left many times.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
extern "C" {
void __sanitizer_start_switch_fiber(void** save, const void* bottom, size_t bytes);
void __sanitizer_finish_switch_fiber(void* saved, const void** bottom, size_t* bytes);
}
#define FIBER_LEAVES(save, bottom, bytes) __sanitizer_start_switch_fiber(save, bottom, bytes)
#define FIBER_ARRIVES(saved, bottom, bytes) __sanitizer_finish_switch_fiber(saved, bottom, bytes)
#else
#define FIBER_LEAVES(save, bottom, bytes) ((void)0)
#define FIBER_ARRIVES(saved, bottom, bytes) ((void)0)
#endif

#if defined(__x86_64__)
// Keeps the callee's registers on the stack (System V ABI, section 3.2.1), stores the stack's end and goes on at another.
extern "C" void fiber_switch(void** save, void* load);
asm(R"(
.text
.p2align 4
.weak fiber_switch
.type fiber_switch, @function
fiber_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
.size fiber_switch, . - fiber_switch
)");
#else
#include <ucontext.h>
#endif

class Fiber {
public:
    Fiber() = default;
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;
    ~Fiber() { free(stack); }

    // Makes the next `enter` call `function`, which may not return by an exception.
    void start(void (*function)()) {
        if (!stack) stack = static_cast<char*>(aligned_alloc(64, STACK_BYTES));
        body = function;
        fake_stack = nullptr;
#if defined(__x86_64__)
        void** top = reinterpret_cast<void**>(stack + STACK_BYTES) - 2;
        *top = reinterpret_cast<void*>(first);
        resume_at = top - 6;  // the six registers that fiber_switch restores; their values do not matter
#else
        getcontext(&inside);
        inside.uc_stack.ss_sp = stack;
        inside.uc_stack.ss_size = STACK_BYTES;
        inside.uc_link = nullptr;
        makecontext(&inside, first, 0);
#endif
    }

    // Runs it until it leaves or returns.
    void enter() {
        running = this;
        void* saved = nullptr;
        FIBER_LEAVES(&saved, stack, STACK_BYTES);
        (void)saved;
#if defined(__x86_64__)
        fiber_switch(&return_to, resume_at);
#else
        swapcontext(&outside, &inside);
#endif
        FIBER_ARRIVES(saved, nullptr, nullptr);
    }

    // Called inside: goes back to who entered.
    void leave() {
        FIBER_LEAVES(&fake_stack, outer_bottom, outer_bytes);
        switch_out();
        FIBER_ARRIVES(fake_stack, &outer_bottom, &outer_bytes);
    }

private:
    static constexpr size_t STACK_BYTES = 256 << 10;

    static void first() {
        Fiber* self = running;
        FIBER_ARRIVES(nullptr, &self->outer_bottom, &self->outer_bytes);
        self->body();
        FIBER_LEAVES(nullptr, self->outer_bottom, self->outer_bytes);
        self->switch_out();
        abort();
    }

    void switch_out() {
#if defined(__x86_64__)
        fiber_switch(&resume_at, return_to);
#else
        swapcontext(&inside, &outside);
#endif
    }

    inline static thread_local Fiber* running = nullptr;
    char* stack = nullptr;
    void (*body)() = nullptr;
    void* fake_stack = nullptr;
    const void* outer_bottom = nullptr;
    size_t outer_bytes = 0;
#if defined(__x86_64__)
    void* resume_at = nullptr;
    void* return_to = nullptr;
#else
    ucontext_t inside, outside;
#endif
};
