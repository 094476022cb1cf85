#include "../../backward/attention_backward.cu"

#include "check.hpp"

struct Batch {
    int heads, kv_heads, dim, window;
    std::vector<int> lens;
    double softcap = 0.0;  // 0 for none

    int rows() const {
        int sum = 0;
        for (int len : lens) sum += len;
        return sum;
    }
    // What a score becomes, and the slope of that.
    double bounded(double s) const { return softcap > 0.0 ? softcap * std::tanh(s / softcap) : s; }
    double slope(double s) const { return softcap > 0.0 ? 1.0 - std::pow(std::tanh(s / softcap), 2) : 1.0; }
    bool sees(int query, int key) const { return key <= query && (window == 0 || query - key < window); }
};

// A value that the kernel rounds to bf16 after an error of up to `error`, and how far its result may be from the one here.
struct RoundedValue {
    double value, slack;
};
RoundedValue rounded_value(double v, double error) {
    const double value = to_f32(from_f32<bf16>(float(v)));
    const double low = to_f32(from_f32<bf16>(float(v - error))), high = to_f32(from_f32<bf16>(float(v + error)));
    return {value, std::fmax(value - low, high - value)};
}

// A sum with bounds for what its terms may be off, beside the rounding of the sum itself.
struct BoundedSum {
    Sum sum;
    double slack = 0.0;

    void add(RoundedValue factor, double other) {
        sum.add(factor.value * other);
        slack += factor.slack * std::fabs(other);
    }
    double bound() const { return slack + 1e-6 * sum.magnitude + 1e-30; }
};

double rounded(float v) { return to_f32(from_f32<bf16>(v)); }

// One head of one sequence, in f64, and what the op reads of its forward pass.
struct Head {
    const Batch& batch;
    const float *q, *k, *v, *d_out;  // the head in the sequence's first row
    int len;
    float scale;

    double q_at(int row, int d) const { return rounded(q[row * batch.heads * batch.dim + d]); }
    double d_out_at(int row, int d) const { return rounded(d_out[row * batch.heads * batch.dim + d]); }
    double k_at(int row, int d) const { return rounded(k[row * batch.kv_heads * batch.dim + d]); }
    double v_at(int row, int d) const { return rounded(v[row * batch.kv_heads * batch.dim + d]); }
    Sum score(int query, int key) const {
        Sum sum;
        for (int d = 0; d < batch.dim; d++) sum.add(scale * q_at(query, d) * k_at(key, d));
        return sum;
    }

    void forward(float* out, float* lse) const {
        for (int i = 0; i < len; i++) {
            double largest = -INFINITY, total = 0.0;
            std::vector<double> scores(len, -INFINITY);
            for (int j = 0; j < len; j++) {
                if (batch.sees(i, j)) largest = std::fmax(largest, scores[j] = batch.bounded(score(i, j).value));
            }
            for (double s : scores) total += std::exp(s - largest);
            lse[i * batch.heads] = float(largest + std::log(total));
            for (int d = 0; d < batch.dim; d++) {
                double sum = 0.0;
                for (int j = 0; j < len; j++) sum += std::exp(scores[j] - largest) / total * v_at(j, d);
                out[i * batch.heads * batch.dim + d] = float(sum);
            }
        }
    }

    // Adds the terms of all pairs.
    void backward(const float* out, const float* lse, BoundedSum* d_q, BoundedSum* d_k, BoundedSum* d_v) const {
        const int q_row = batch.heads * batch.dim, kv_row = batch.kv_heads * batch.dim;
        for (int i = 0; i < len; i++) {
            Sum delta;
            for (int d = 0; d < batch.dim; d++) delta.add(out[i * q_row + d] * d_out_at(i, d));
            for (int j = 0; j <= i; j++) {
                if (!batch.sees(i, j)) continue;
                const Sum s = score(i, j);
                Sum d_weight;
                for (int d = 0; d < batch.dim; d++) d_weight.add(d_out_at(i, d) * v_at(j, d));
                const double exponent = batch.bounded(s.value) - lse[i * batch.heads], slope = batch.slope(s.value);
                const double weight = std::exp(exponent);
                const double error = weight * (5e-7 * (s.magnitude + std::fabs(lse[i * batch.heads])) + 1e-6);
                const double d_score = weight * (d_weight.value - delta.value) * slope;
                const double d_error =
                    error * std::fabs(d_weight.value - delta.value) + 1e-6 * weight * (d_weight.magnitude + delta.magnitude) +
                    (batch.softcap > 0.0 ? 4e-6 * weight * (1.0 + s.magnitude) * (d_weight.magnitude + delta.magnitude) : 0.0);
                const RoundedValue p = rounded_value(weight, error), ds = rounded_value(d_score, d_error);
                for (int d = 0; d < batch.dim; d++) {
                    d_v[j * kv_row + d].add(p, d_out_at(i, d));
                    d_k[j * kv_row + d].add(ds, scale * q_at(i, d));
                    d_q[i * q_row + d].add(ds, scale * k_at(j, d));
                }
            }
        }
    }
};

void compare(const char* what, const Buffer<float>& got, const std::vector<BoundedSum>& want) {
    for (size_t i = 0; i < got.size(); i++) check(what, i, got[i], want[i].sum.value, want[i].bound());
}

struct Entry {
    void (*keys)(Dim3, Dim3, size_t, const void*, unsigned);
    void (*queries)(Dim3, Dim3, size_t, const void*, unsigned);
    size_t shared_bytes;
};
Entry entry_for(int dim) {
    if (dim == 64) return {attention_backward_keys_64, attention_backward_queries_64, 56320};
    if (dim == 96) return {attention_backward_keys_96, attention_backward_queries_96, 53760};
    return {attention_backward_keys_128, attention_backward_queries_128, 70144};
}

void run(const Batch& batch) {
    const int rows = batch.rows(), q_row = batch.heads * batch.dim, kv_row = batch.kv_heads * batch.dim;
    Random random(uint64_t(rows * 1000 + batch.dim + batch.window));
    const size_t q_len = size_t(rows) * q_row, kv_len = size_t(rows) * kv_row;
    auto q = random_floats<float>(random, q_len, 2.0f), k = random_floats<float>(random, kv_len, 2.0f);
    auto v = random_floats<float>(random, kv_len), d_out = random_floats<float>(random, q_len);
    Buffer<float> out(q_len), lse(size_t(rows) * batch.heads);
    Buffer<u32> starts(batch.lens.size() + 1);
    std::vector<BoundedSum> want_q(out.size()), want_k(k.size()), want_v(v.size());
    const float scale = 1.0f / std::sqrt(float(batch.dim));
    int start = 0;
    for (size_t s = 0; s < batch.lens.size(); start += batch.lens[s], s++) {
        starts[s] = u32(start);
        for (int h = 0; h < batch.heads; h++) {
            const int kv_head = h / (batch.heads / batch.kv_heads);
            const int at = start * q_row + h * batch.dim, kv_at = start * kv_row + kv_head * batch.dim;
            const Head head{batch, &q[at], &k[kv_at], &v[kv_at], &d_out[at], batch.lens[s], scale};
            head.forward(&out[at], &lse[start * batch.heads + h]);
            head.backward(&out[at], &lse[start * batch.heads + h], &want_q[at], &want_k[kv_at], &want_v[kv_at]);
        }
    }
    starts[batch.lens.size()] = u32(rows);

    for_orders([&](unsigned seed) {
        Buffer<bf16> q_rounded(q.size()), k_rounded(k.size()), v_rounded(v.size()), d_out_rounded(q.size());
        Buffer<float> delta(lse.size()), d_q(q.size()), d_k(k.size()), d_v(v.size());
        AttentionBackwardArgs args{};
        args.q = q.get(), args.k = k.get(), args.v = v.get();
        args.out = out.get(), args.d_out = d_out.get(), args.lse = lse.get();
        args.q_rounded = q_rounded.get(), args.k_rounded = k_rounded.get(), args.v_rounded = v_rounded.get();
        args.d_out_rounded = d_out_rounded.get(), args.delta = delta.get();
        args.d_q = d_q.get(), args.d_k = d_k.get(), args.d_v = d_v.get();
        args.seq_starts = starts.get(), args.num_seqs = int(batch.lens.size());
        args.heads = batch.heads, args.kv_heads = batch.kv_heads, args.dim = batch.dim;
        args.window = batch.window, args.scale = scale, args.softcap = float(batch.softcap);
        const Entry entry = entry_for(batch.dim);
        const unsigned slots = unsigned(rows) / 64 + unsigned(batch.lens.size());
        attention_backward_prepare(Dim3{unsigned(rows)}, Dim3{256}, 0, &args, seed);
        entry.keys(Dim3{slots, unsigned(batch.kv_heads)}, Dim3{128}, entry.shared_bytes, &args, seed);
        entry.queries(Dim3{slots, unsigned(batch.heads)}, Dim3{128}, entry.shared_bytes, &args, seed);
        compare("d_q", d_q, want_q);
        compare("d_k", d_k, want_k);
        compare("d_v", d_v, want_v);
    });
}

// Of the rows of many short sequences.
void tiles_of_many() {
    Buffer<u32> starts(101);
    for (u32 s = 0, row = 0; s <= 100; row += s % 7 == 3 ? 70 : s % 5, s++) starts[s] = row;
    for (int num_seqs : {1, 2, 33, 100}) {
        std::vector<int> times(starts[num_seqs], 0);
        const int slots = int(starts[num_seqs]) / 64 + num_seqs;
        for (int slot = 0; slot < slots; slot++) {
            Buffer<int> found(3);
            simt::launch("sequence_tile", Dim3{}, Dim3{32}, 0, 1, [&] {
                const SequenceTile tile = sequence_tile(starts.get(), num_seqs, 64, slot);
                found[0] = tile.start, found[1] = tile.len, found[2] = tile.first;
            });
            for (int row = found[2]; row < found[1] && row < found[2] + 64; row++) times[found[0] + row]++;
        }
        for (size_t row = 0; row < times.size(); row++) check("visits of a row", row, times[row], 1, 0.0);
    }
}

int main() {
    tiles_of_many();
    static_assert(sizeof(AttentionTiles<64, 64>) == 56320 && sizeof(AttentionTiles<96, 32>) == 53760 &&
                      sizeof(AttentionTiles<128, 32>) == 70144,
                  "the file's head says how much memory to give");
    run({3, 1, 64, 0, {1, 17, 70}});
    run({2, 1, 64, 63, {140, 20}});
    run({1, 1, 64, 40, {130}});
    run({1, 1, 64, 1, {67}});
    run({4, 2, 96, 0, {64, 65, 3}});
    run({1, 1, 96, 47, {131}});
    run({2, 1, 128, 0, {1, 98}});
    run({1, 1, 128, 31, {100}});
    run({2, 1, 64, 0, {70, 3}, 1.5});
    run({2, 1, 96, 40, {90}, 4.0});
}
