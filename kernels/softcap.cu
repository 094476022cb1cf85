// out = cap * tanh(x / cap), four elements a thread: bound by memory. Tensors may begin at any element.
//
// Entry point: softcap. Launch: grid ceil(n / 1024), block 256.
#include "lib/kernel.cuh"

struct SoftcapArgs {
    const float* x;  // [n]
    float* out;      // [n]; may be x
    u64 n;
    float cap;
};

#define THREADS 256

KERNEL(softcap, SoftcapArgs, THREADS) {
    const u64 at = 4 * (u64(blockIdx.x) * THREADS + threadIdx.x);
    const i64 count = i64(args.n) - i64(at);
    if (count <= 0) return;
    float x[4];
    load_up_to4(x, args.x + at, count);
    for (int i = 0; i < 4; i++) x[i] = args.cap * tanhf(x[i] / args.cap);
    store_up_to4(args.out + at, x, count);
}
