// What lib/kernel.cuh gives to all kernels.
#include "../../lib/kernel.cuh"

#include "check.hpp"

struct ReductionArgs {
    const float* x;  // [threads]
    float* sums;     // [threads, 2]
    float* maxima;   // [threads]
};

// Two sums and a maximum through one room: each has to wait until the other's readers are done.
KERNEL(reductions, ReductionArgs, 1024) {
    SHARED(BlockReduction, room);
    float v = args.x[threadIdx.x];
    args.sums[2 * threadIdx.x] = block_sum(v, room);
    args.maxima[threadIdx.x] = block_max(v, room);
    args.sums[2 * threadIdx.x + 1] = block_sum(2.0f * v, room);
}

void reduce(unsigned threads, unsigned seed) {
    Random random(threads);
    auto x = random_floats<float>(random, threads);
    Buffer<float> sums(2 * threads), maxima(threads);
    ReductionArgs args{x.get(), sums.get(), maxima.get()};
    reductions(Dim3{1}, Dim3{threads}, 0, &args, seed);
    Sum want;
    double largest = -INFINITY;
    for (size_t i = 0; i < x.size(); i++) {
        want.add(x[i]);
        largest = std::fmax(largest, x[i]);
    }
    for (unsigned i = 0; i < threads; i++) {
        check("first sum", i, sums[2 * i], want.value, 1e-6 * want.magnitude);
        check("second sum", i, sums[2 * i + 1], 2.0 * want.value, 2e-6 * want.magnitude);
        check("maximum", i, maxima[i], largest, 0.0);
    }
}

// Every 16-bit pattern there and back, and what lies between.
void conversions() {
    for (uint32_t bits = 0; bits < 0x10000; bits++) {
        float h = f16_to_f32(uint16_t(bits)), b = to_f32(bf16{uint16_t(bits)});
        if (!std::isnan(h) && f32_to_f16(h) != bits) fail("f16 " + std::to_string(bits) + " does not come back");
        if (!std::isnan(b) && f32_to_bf16(b) != bits) fail("bf16 " + std::to_string(bits) + " does not come back");
    }
    check("f16 of a third", 0, f16_to_f32(f32_to_f16(1.0f / 3.0f)), 1.0 / 3.0, 0x1p-13);
    check("f16 of a tie", 0, f16_to_f32(f32_to_f16(1.0f + 0x1p-11f)), 1.0, 0.0);
    check("f16 of the other tie", 0, f16_to_f32(f32_to_f16(1.0f + 3 * 0x1p-11f)), 1.0 + 0x1p-9, 0.0);
    check("small f16", 0, f16_to_f32(f32_to_f16(3e-7f)), 3e-7, 0x1p-25);
    if (!std::isinf(f16_to_f32(f32_to_f16(65520.0f))) || f16_to_f32(f32_to_f16(65519.0f)) != 65504.0f) fail("f16's end");
    check("bf16 of a tie", 0, to_f32(from_f32<bf16>(1.0f + 0x1p-8f)), 1.0, 0.0);
}

int main() {
    for_orders([](unsigned seed) {
        for (unsigned threads : {32u, 64u, 256u, 1024u}) reduce(threads, seed);
    });
    conversions();
}
