// One step of AdamW (Loshchilov & Hutter, arXiv 1711.05101, algorithm 2) over all parameters, four a thread.
// Launch: grid (ceil(n / 1024)), block 256. Tensors may begin at any float.
#include "../lib/kernel.cuh"

struct AdamWArgs {
    float* parameters;       // [n]
    const float* gradients;  // [n]
    float* first;            // [n], the first moments
    float* second;           // [n], the second moments
    u64 n;
    float beta1, beta2;
    float epsilon;
    float gradient_scale;
    float keep;               // 1 - learning_rate * weight_decay
    float rate;               // learning_rate / (1 - beta1^step), the power in f64 and the difference rounded to f32
    float second_correction;  // sqrt(1 - beta2^step), in f64 before it is rounded to f32
};

#define THREADS 256

KERNEL(adamw, AdamWArgs, THREADS) {
    const u64 at = 4 * (u64(blockIdx.x) * THREADS + threadIdx.x);
    const i64 count = i64(args.n) - i64(at);
    if (count <= 0) return;
    float p[4], g[4], m[4], v[4];
    load_up_to4(p, args.parameters + at, count);
    load_up_to4(g, args.gradients + at, count);
    load_up_to4(m, args.first + at, count);
    load_up_to4(v, args.second + at, count);
    for (int i = 0; i < 4; i++) {
        g[i] *= args.gradient_scale;
        m[i] = args.beta1 * m[i] + (1.0f - args.beta1) * g[i];
        v[i] = args.beta2 * v[i] + (1.0f - args.beta2) * g[i] * g[i];
        p[i] = p[i] * args.keep - args.rate * m[i] / (sqrtf(v[i]) / args.second_correction + args.epsilon);
    }
    store_up_to4(args.parameters + at, p, count);
    store_up_to4(args.first + at, m, count);
    store_up_to4(args.second + at, v, count);
}
