#include "../../dequantise.cu"

#include "weights.hpp"

// Columns that a format allows: whole blocks; of floats, any.
static std::vector<int> cols_of(const FormatInfo& info) {
    if (info.block_len == 1) return {1, 7, 40, 129, 200};
    if (info.block_len == 32) return {32, 96, 160, 288};
    return {256, 768};
}

static unsigned blocks_for(const FormatInfo& info, int count, int cols) {
    int unit = info.format == WEIGHT_F32 ? 32 : info.format <= WEIGHT_BF16 ? 64 : 128;
    return unsigned(count * 4 * ((cols + unit - 1) / unit) + 255) / 256;
}

template <class Out>
void run(const HostWeight& w, int first, int count, unsigned seed) {
    auto planes = pack(w);
    int padded = (w.cols + 7) / 8 * 8, stride = padded + 16;
    Buffer<Out> out(size_t(count) * stride);
    DequantiseArgs args{planes->weight, out.get(), first, count, stride, element_type<Out>()};
    dequantise(Dim3{blocks_for(w.info, count, w.cols)}, Dim3{256}, 0, &args, seed);
    for (int r = 0; r < count; r++) {
        for (int c = 0; c < stride; c++) {
            uint32_t got = 0, want = 0xffffffff;
            memcpy(&got, &out[size_t(r) * stride + c], sizeof(Out));
            if (c < padded) {
                Out value = from_f32<Out>(c < w.cols ? w.value(first + r, c) : 0.0f);
                want = 0;
                memcpy(&want, &value, sizeof(Out));
            } else if (sizeof(Out) == 2) {
                want = 0xffff;  // not written
            }
            if (got != want)
                fail(std::string("dequantise ") + w.info.name + ": row " + std::to_string(r) + ", column " +
                     std::to_string(c));
        }
    }
}

// A packing that Rust's has to agree with: planes.rs has the same numbers.
static void packing() {
    const uint64_t hashes[] = {0xaf8c286ad90bd32d, 0x5c85e0ee515da9d5, 0xfcd3ade315aef90d,
                               0x931ea0bb24833608, 0x07e4c7d419102c0b, 0x791e9913ee9c7e39,
                               0x24a33953e4fbefd8, 0x28e10910949110f9, 0x221dd561b7097f80};
    for (const FormatInfo& info : FORMATS) {
        Random random(7 + uint64_t(info.format));
        int rows = 3, cols = info.block_len == 1 ? 203 : info.block_len == 32 ? 416 : 512;
        uint64_t hash = hash_of(*pack(HostWeight(info, rows, cols, random_bytes(random, info, rows, cols))));
        if (hash != hashes[info.format]) {
            char text[80];
            snprintf(text, sizeof(text), "packing of %s has hash 0x%016llx", info.name,
                     static_cast<unsigned long long>(hash));
            fail(text);
        }
    }
}

int main() {
    packing();
    for_orders([](unsigned seed) {
        for (const FormatInfo& info : FORMATS) {
            for (int cols : cols_of(info)) {
                Random random(uint64_t(cols * 10 + info.format));
                HostWeight w = random_weight(random, info, 5, cols);
                run<float>(w, 0, 5, seed);
                run<bf16>(w, 1, 3, seed);
                run<f16>(w, 4, 1, seed);
            }
        }
    });
}
