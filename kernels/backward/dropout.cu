// out = x with some values left out and the others divided by 1 - probability (Srivastava et al., JMLR 15, 2014), or that
// added to out: the gradient. Which ones is a function of seed, optimizer step and place alone, by the counter-based
// generator Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3): the same ones as on
// the CPU. Launch: grid (rows, ceil(cols / 1024)), block 256. A thread has four columns: one call gives four random words.
#include "../lib/kernel.cuh"

struct DropoutArgs {
    const float* x;          // [rows, cols]
    float* out;              // [rows, cols]; may be x
    const u32* example_idx;  // [rows]
    const u32* positions;    // [rows]
    u64 threshold;           // floor(probability 2³²), in f64: a word below it leaves its value out
    u32 key[2];              // seed's lower half ^ step * 0x9e3779b9 (mod 2³²), and its upper half
    u32 module;
    float keep;              // 1 / (1 - probability) in f32; 0 if probability is 1
    int cols;
    int accumulate;          // whether it is added to out
};

#define THREADS 256

struct Words {
    u32 at[4];
};

DEVICE Words philox4x32_10(Words c, u32 key0, u32 key1) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const u64 left = u64(0xd2511f53u) * c.at[0], right = u64(0xcd9e8d57u) * c.at[2];
        c = Words{{u32(right >> 32) ^ c.at[1] ^ key0, u32(right), u32(left >> 32) ^ c.at[3] ^ key1, u32(left)}};
        key0 += 0x9e3779b9u;
        key1 += 0xbb67ae85u;
    }
    return c;
}

KERNEL(dropout, DropoutArgs, THREADS) {
    const int col = 4 * (int(blockIdx.y) * THREADS + int(threadIdx.x));
    const int count = args.cols - col;
    if (count <= 0) return;
    const u64 at = u64(blockIdx.x) * args.cols + col;
    const Words place{{u32(col) / 4, args.positions[blockIdx.x], args.example_idx[blockIdx.x], args.module}};
    const Words words = philox4x32_10(place, args.key[0], args.key[1]);
    float x[4], out[4] = {};
    load_up_to4(x, args.x + at, count);
    if (args.accumulate) load_up_to4(out, args.out + at, count);
    for (int i = 0; i < 4; i++) {
        float value = u64(words.at[i]) < args.threshold ? 0.0f : x[i] * args.keep;
        out[i] = args.accumulate ? out[i] + value : value;
    }
    store_up_to4(args.out + at, out, count);
}
