#include "../../embed.cu"

#include "weights.hpp"

static void run(const HostWeight& table, const std::vector<u32>& ids, unsigned seed, float scale = 1.0f) {
    auto planes = pack(table);
    int rows = int(ids.size()), format = table.info.format;
    Buffer<u32> on_device(ids.size());
    for (size_t i = 0; i < ids.size(); i++) on_device[i] = ids[i];
    Buffer<float> out(ids.size() * size_t(table.cols));
    EmbedArgs args{planes->weight, on_device.get(), out.get(), rows, scale};
    int unit = format == WEIGHT_F32 ? 32 : format <= WEIGHT_BF16 ? 64 : 128;
    embed(Dim3{unsigned(rows * 4 * ((table.cols + unit - 1) / unit) + 127) / 128}, Dim3{128}, 0, &args, seed);
    for (int r = 0; r < rows; r++) {
        for (int c = 0; c < table.cols; c++) {
            float want = table.value(int(ids[size_t(r)]), c) * scale;
            if (f32_to_bits(out[size_t(r) * table.cols + c]) != f32_to_bits(want)) {
                fail(std::string("embed ") + table.info.name + ": row " + std::to_string(r) + ", column " +
                     std::to_string(c));
            }
        }
    }
}

int main() {
    for_orders([](unsigned seed) {
        for (const FormatInfo& info : FORMATS) {
            for (int cols : info.block_len == 1    ? std::vector<int>{1, 7, 64, 203}
                            : info.block_len == 32 ? std::vector<int>{32, 416}
                                                   : std::vector<int>{256, 512}) {
                Random random(uint64_t(cols * 10 + info.format));
                HostWeight table = random_weight(random, info, 11, cols);
                run(table, {10, 0, 3, 3, 7}, seed);
                run(table, {5}, seed);
                run(table, {5, 2}, seed, 9.75f);
            }
        }
    });
}
