// out = gelu(x) (Hendrycks & Gimpel, arXiv 1606.08415), or gelu(x) * up (GeGLU; Shazeer, arXiv 2002.05202), four elements a thread:
// bound by memory. By the error function or by the tangent (lib/gelu.cuh). Tensors may begin at any element.
//
// Entry point: gelu. Launch: grid ceil(n / 1024), block 256.
#include "lib/gelu.cuh"

struct GeluArgs {
    const float* x;   // [n]
    const float* up;  // [n], or null
    void* out;        // [n] of out_type; may be x or up if F32
    u64 n;
    int out_type;
    int by_tanh;
};

#define THREADS 256

KERNEL(gelu, GeluArgs, THREADS) {
    const u64 at = 4 * (u64(blockIdx.x) * THREADS + threadIdx.x);
    const i64 count = i64(args.n) - i64(at);
    if (count <= 0) return;
    float x[4], up[4];
    load_up_to4(x, args.x + at, count);
    if (args.up) load_up_to4(up, args.up + at, count);
    for (int i = 0; i < 4; i++) {
        x[i] *= gelu_share(x[i], args.by_tanh);
        if (args.up) x[i] *= up[i];
    }
    if (args.out_type == F32) {
        store_up_to4(static_cast<float*>(args.out) + at, x, count);
        return;
    }
    for (int i = 0; i < 4; i++) {
        if (i < count) store_element(args.out, at + i, x[i], args.out_type);
    }
}
