// Gradients that are computed element by element, four a thread: all are bound by memory. Tensors may begin at any float;
// those that are aligned to 16 bytes are read and written in whole vectors.
// Launch, block 256 each:
//     silu_mul_backward, gelu_backward, softcap_backward, add_scaled: grid (ceil(n / 1024))
//     gather_rows_backward: grid (num_rows, ceil(cols / 1024))
#include "../lib/gelu.cuh"

#define THREADS 256

// The first of the thread's four elements.
DEVICE u64 first_element() { return 4 * (u64(blockIdx.x) * THREADS + threadIdx.x); }

// out = silu(gate) * up, silu(g) = g sigmoid(g) (Shazeer, arXiv 2002.05202).
struct SiluMulBackwardArgs {
    const float* gate;   // [n]
    const float* up;     // [n]
    const float* d_out;  // [n]
    float* d_gate;       // [n]; may be d_out, and may be gate
    float* d_up;         // [n]; may be up
    u64 n;
};

KERNEL(silu_mul_backward, SiluMulBackwardArgs, THREADS) {
    const u64 at = first_element();
    const i64 count = i64(args.n) - i64(at);
    if (count <= 0) return;
    float gate[4], up[4], d_out[4], d_gate[4], d_up[4];
    load_up_to4(gate, args.gate + at, count);
    load_up_to4(up, args.up + at, count);
    load_up_to4(d_out, args.d_out + at, count);
    for (int i = 0; i < 4; i++) {
        float sigmoid = 1.0f / (1.0f + expf(-gate[i]));
        float silu = gate[i] * sigmoid;
        // silu' = sigmoid (1 + g (1 - sigmoid)) = sigmoid + silu (1 - sigmoid)
        d_up[i] = d_out[i] * silu;
        d_gate[i] = d_out[i] * up[i] * (sigmoid + silu * (1.0f - sigmoid));
    }
    store_up_to4(args.d_gate + at, d_gate, count);
    store_up_to4(args.d_up + at, d_up, count);
}

// out = gelu(x), or gelu(x) * up (lib/gelu.cuh).
struct GeluBackwardArgs {
    const float* x;      // [n]
    const float* up;     // [n], or null, as d_up then
    const float* d_out;  // [n]
    float* d_x;          // [n]; may be d_out
    float* d_up;         // [n]
    u64 n;
    int by_tanh;
};

KERNEL(gelu_backward, GeluBackwardArgs, THREADS) {
    const u64 at = first_element();
    const i64 count = i64(args.n) - i64(at);
    if (count <= 0) return;
    float x[4], up[4], d_out[4];
    load_up_to4(x, args.x + at, count);
    load_up_to4(d_out, args.d_out + at, count);
    if (args.up) {
        load_up_to4(up, args.up + at, count);
        float d_up[4];
        for (int i = 0; i < 4; i++) {
            d_up[i] = d_out[i] * x[i] * gelu_share(x[i], args.by_tanh);
            d_out[i] *= up[i];
        }
        store_up_to4(args.d_up + at, d_up, count);
    }
    for (int i = 0; i < 4; i++) d_out[i] *= gelu_slope(x[i], args.by_tanh);
    store_up_to4(args.d_x + at, d_out, count);
}

// out = cap * tanh(x / cap).
struct SoftcapBackwardArgs {
    const float* x;      // [n]
    const float* d_out;  // [n]
    float* d_x;          // [n]; may be d_out
    u64 n;
    float cap;
};

KERNEL(softcap_backward, SoftcapBackwardArgs, THREADS) {
    const u64 at = first_element();
    const i64 count = i64(args.n) - i64(at);
    if (count <= 0) return;
    float x[4], d_out[4];
    load_up_to4(x, args.x + at, count);
    load_up_to4(d_out, args.d_out + at, count);
    for (int i = 0; i < 4; i++) {
        const float t = tanhf(x[i] / args.cap);
        d_out[i] *= 1.0f - t * t;
    }
    store_up_to4(args.d_x + at, d_out, count);
}

// to += factor * from.
struct AddScaledArgs {
    const float* from;  // [n]
    float* to;          // [n]
    u64 n;
    float factor;
};

KERNEL(add_scaled, AddScaledArgs, THREADS) {
    const u64 at = first_element();
    const i64 count = i64(args.n) - i64(at);
    if (count <= 0) return;
    float from[4], to[4];
    load_up_to4(from, args.from + at, count);
    load_up_to4(to, args.to + at, count);
    for (int i = 0; i < 4; i++) to[i] += args.factor * from[i];
    store_up_to4(args.to + at, to, count);
}

// d_x[rows[i]] += d_out[i]. No row comes twice, so that blocks never meet.
struct GatherRowsBackwardArgs {
    const float* d_out;  // [num_rows, cols]
    const u32* rows;     // [num_rows], each below the rows of d_x, none twice
    float* d_x;          // [any, cols]
    int cols;
};

KERNEL(gather_rows_backward, GatherRowsBackwardArgs, THREADS) {
    const int col = 4 * (int(blockIdx.y) * THREADS + int(threadIdx.x));
    const int count = args.cols - col;
    if (count <= 0) return;
    const float* d_out = args.d_out + u64(blockIdx.x) * args.cols + col;
    float* d_x = args.d_x + u64(args.rows[blockIdx.x]) * args.cols + col;
    float from[4], to[4];
    load_up_to4(from, d_out, count);
    load_up_to4(to, d_x, count);
    for (int i = 0; i < 4; i++) to[i] += from[i];
    store_up_to4(d_x, to, count);
}
