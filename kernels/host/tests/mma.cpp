// Tensor-core and asynchronous-copy instructions of lib/mma.cuh, as PTX defines them, by a product of two small matrices.
#include "../../lib/mma.cuh"

#include "check.hpp"

template <class T>
struct ProductArgs {
    const T* a;  // [16, k]
    const T* b;  // [8, k], or [k, 8] if it is to be transposed
    float* d;    // [16, 8]
    int k;
};

template <class T>
struct Tiles {
    T a[2][16 * 16];
    T b[2][16 * 8];
};

// Two tiles in flight, as kernels have them.
template <class T, bool TRANSPOSED>
DEVICE void product(const ProductArgs<T>& args) {
    SHARED(Tiles<T>, tiles);
    int lane = lane_idx();
    float d[4] = {};
    auto fetch = [&](int stage, int k) {
        cp_async16(&tiles.a[stage][lane / 2 * 16 + lane % 2 * 8], args.a + lane / 2 * args.k + k + lane % 2 * 8);
        const T* b = TRANSPOSED ? args.b + (k + lane) * 8 : args.b + lane / 2 * args.k + k + lane % 2 * 8;
        if (lane < 16) cp_async16(&tiles.b[stage][lane * 8], b);
        cp_async_commit();
    };
    fetch(0, 0);
    for (int k = 0, stage = 0; k < args.k; k += 16, stage ^= 1) {
        if (k + 16 < args.k) fetch(stage ^ 1, k + 16);
        else cp_async_commit();
        cp_async_wait<1>();
        __syncwarp();
        u32 a[4], b[2];
        ldmatrix_x4(a, &tiles.a[stage][lane % 16 * 16 + lane / 16 * 8]);
        const T* tile = tiles.b[stage];
        if (TRANSPOSED) ldmatrix_x2_transposed(b, tile + lane % 16 * 8);
        else ldmatrix_x2(b, tile + lane % 8 * 16 + lane / 8 % 2 * 8);
        mma_m16n8k16(d, a, b, T{});
        __syncwarp();
    }
    cp_async_wait<0>();
    int row = lane / 4, col = lane % 4 * 2;
    for (int i = 0; i < 4; i++) args.d[(row + i / 2 * 8) * 8 + col + i % 2] = d[i];
}

KERNEL(product_bf16, ProductArgs<bf16>, 32) { product<bf16, false>(args); }
KERNEL(product_f16, ProductArgs<f16>, 32) { product<f16, false>(args); }
KERNEL(product_transposed_f16, ProductArgs<f16>, 32) { product<f16, true>(args); }

template <class T, class Kernel>
void run(Kernel kernel, int k, bool transposed, unsigned seed) {
    Random random(static_cast<uint64_t>(k));
    auto a = random_floats<T>(random, 16 * k), b = random_floats<T>(random, 8 * k);
    Buffer<float> d(16 * 8);
    ProductArgs<T> args{a.get(), b.get(), d.get(), k};
    kernel(Dim3{1}, Dim3{32}, 0, &args, seed);
    for (int i = 0; i < 16 * 8; i++) {
        Sum want;
        for (int j = 0; j < k; j++) want.add(double(to_f32(a[i / 8 * k + j])) * to_f32(transposed ? b[j * 8 + i % 8] : b[i % 8 * k + j]));
        check("product", size_t(i), d[i], want.value, 1e-6 * want.magnitude);
    }
}

int main() {
    for_orders([](unsigned seed) {
        for (int k : {16, 48, 128}) {
            run<bf16>(product_bf16, k, false, seed);
            run<f16>(product_f16, k, false, seed);
            run<f16>(product_transposed_f16, k, true, seed);
        }
    });
}
