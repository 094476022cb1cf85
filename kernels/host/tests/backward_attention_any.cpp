#include "../../backward/attention_backward_any.cu"

#include "check.hpp"

struct Batch {
    int heads, kv_heads, dim, window;
    std::vector<int> lens;
    double softcap = 0.0;  // 0 for none

    int q_row() const { return heads * dim; }
    int kv_row() const { return kv_heads * dim; }
    // What a score becomes, and the slope of that.
    double bounded(double s) const { return softcap > 0.0 ? softcap * std::tanh(s / softcap) : s; }
    double slope(double s) const { return softcap > 0.0 ? 1.0 - std::pow(std::tanh(s / softcap), 2) : 1.0; }
    bool sees(int query, int key) const { return key <= query && (window == 0 || query - key < window); }
};

using Values = std::vector<double>;

struct Inputs {
    Values q, k, v;
};

// One row of one head, by definition: attention's output, and the logarithm of the softmax' denominator.
Values attend(const Batch& batch, const Inputs& in, int start, int query, int head, double* lse) {
    const double scale = 1.0 / std::sqrt(double(batch.dim));
    const size_t q_at = size_t(start + query) * batch.q_row() + head * batch.dim;
    const int kv_head = head / (batch.heads / batch.kv_heads);
    Values weights(query + 1, 0.0), out(batch.dim, 0.0);
    double total = 0.0;
    for (int key = 0; key <= query; key++) {
        if (!batch.sees(query, key)) continue;
        const size_t kv_at = size_t(start + key) * batch.kv_row() + kv_head * batch.dim;
        double score = 0.0;
        for (int d = 0; d < batch.dim; d++) score += scale * in.q[q_at + d] * in.k[kv_at + d];
        total += weights[key] = std::exp(batch.bounded(score));
    }
    for (int key = 0; key <= query; key++) {
        const size_t kv_at = size_t(start + key) * batch.kv_row() + kv_head * batch.dim;
        for (int d = 0; d < batch.dim; d++) out[d] += weights[key] / total * in.v[kv_at + d];
    }
    *lse = std::log(total);
    return out;
}

template <class F>
void for_rows(const Batch& batch, F f) {
    int start = 0;
    for (int len : batch.lens) {
        for (int row = 0; row < len; row++) {
            for (int head = 0; head < batch.heads; head++) f(start, row, head);
        }
        start += len;
    }
}

// What is differentiated: Σ d_out out.
double loss(const Batch& batch, const Inputs& in, const Buffer<float>& d_out) {
    double sum = 0.0;
    for_rows(batch, [&](int start, int row, int head) {
        double lse;
        const Values out = attend(batch, in, start, row, head, &lse);
        for (int d = 0; d < batch.dim; d++) sum += out[d] * d_out[size_t(start + row) * batch.q_row() + head * batch.dim + d];
    });
    return sum;
}

struct Gradients {
    std::vector<Sum> q, k, v;
};

// The chain rule through softmax, term by term.
Gradients gradients(const Batch& batch, const Inputs& in, const Buffer<float>& out, const Buffer<float>& lse,
                    const Buffer<float>& d_out) {
    Gradients sums{std::vector<Sum>(in.q.size()), std::vector<Sum>(in.k.size()), std::vector<Sum>(in.v.size())};
    const double scale = 1.0 / std::sqrt(double(batch.dim));
    for_rows(batch, [&](int start, int query, int head) {
        const size_t row = size_t(start + query), at = row * batch.q_row() + head * batch.dim;
        double delta = 0.0;
        for (int d = 0; d < batch.dim; d++) delta += double(out[at + d]) * d_out[at + d];
        for (int key = 0; key <= query; key++) {
            if (!batch.sees(query, key)) continue;
            const size_t kv_at = size_t(start + key) * batch.kv_row() + head / (batch.heads / batch.kv_heads) * batch.dim;
            double score = 0.0, d_weight = 0.0;
            for (int d = 0; d < batch.dim; d++) {
                score += scale * in.q[at + d] * in.k[kv_at + d];
                d_weight += d_out[at + d] * in.v[kv_at + d];
            }
            const double weight = std::exp(batch.bounded(score) - lse[row * batch.heads + head]);
            const double d_score = weight * (d_weight - delta) * batch.slope(score);
            for (int d = 0; d < batch.dim; d++) {
                sums.v[kv_at + d].add(weight * d_out[at + d]);
                sums.k[kv_at + d].add(d_score * scale * in.q[at + d]);
                sums.q[at + d].add(d_score * scale * in.k[kv_at + d]);
            }
        }
    });
    return sums;
}

void compare(const char* what, const Buffer<float>& got, const std::vector<Sum>& want) {
    for (size_t i = 0; i < got.size(); i++) check(what, i, got[i], want[i].value, 4e-6 * want[i].magnitude + 1e-6);
}

// A gradient against central differences of the loss, at some places.
void compare_slopes(const char* what, const Batch& batch, Inputs in, Values Inputs::*part, const Buffer<float>& d_out,
                    const Buffer<float>& got) {
    Values& of = in.*part;
    Random random(of.size());
    for (int i = 0; i < 12; i++) {
        const size_t at = size_t(random.below(int(of.size())));
        const double step = 1e-4, before = of[at];
        of[at] = before + step;
        double slope = loss(batch, in, d_out);
        of[at] = before - step;
        slope = (slope - loss(batch, in, d_out)) / (2 * step);
        of[at] = before;
        check(what, at, got[at], slope, 1e-5 * (1.0 + std::fabs(slope)));
    }
}

Values exact(const Buffer<float>& values) { return Values(values.get(), values.get() + values.size()); }

void run(const Batch& batch, bool with_slopes) {
    int rows = 0;
    for (int len : batch.lens) rows += len;
    Random random(uint64_t(rows * 1000 + batch.dim + batch.window));
    const size_t q_len = size_t(rows) * batch.q_row(), kv_len = size_t(rows) * batch.kv_row();
    auto q = random_floats<float>(random, q_len, 2.0f), k = random_floats<float>(random, kv_len, 2.0f);
    auto v = random_floats<float>(random, kv_len), d_out = random_floats<float>(random, q_len);
    Buffer<float> out(q_len), lse(size_t(rows) * batch.heads);
    Buffer<u32> starts(batch.lens.size() + 1, 0);
    for (size_t s = 0; s < batch.lens.size(); s++) starts[s + 1] = starts[s] + u32(batch.lens[s]);
    Inputs in{exact(q), exact(k), exact(v)};
    for_rows(batch, [&](int start, int row, int head) {
        double log_sum;
        const Values values = attend(batch, in, start, row, head, &log_sum);
        for (int d = 0; d < batch.dim; d++) out[size_t(start + row) * batch.q_row() + head * batch.dim + d] = float(values[d]);
        lse[size_t(start + row) * batch.heads + head] = float(log_sum);
    });
    const Gradients want = gradients(batch, in, out, lse, d_out);
    for_orders([&](unsigned seed) {
        Buffer<float> delta(lse.size()), d_q(q_len), d_k(kv_len), d_v(kv_len);
        AttentionBackwardAnyArgs args{};
        args.q = q.get(), args.k = k.get(), args.v = v.get();
        args.out = out.get(), args.d_out = d_out.get(), args.lse = lse.get(), args.delta = delta.get();
        args.d_q = d_q.get(), args.d_k = d_k.get(), args.d_v = d_v.get();
        args.seq_starts = starts.get(), args.num_seqs = int(batch.lens.size());
        args.heads = batch.heads, args.kv_heads = batch.kv_heads, args.dim = batch.dim;
        args.window = batch.window, args.scale = 1.0f / std::sqrt(float(batch.dim));
        args.softcap = float(batch.softcap);
        const unsigned slots = unsigned(rows) / 32 + unsigned(batch.lens.size());
        attention_backward_any_delta(Dim3{unsigned(rows)}, Dim3{256}, 0, &args, seed);
        attention_backward_any_keys(Dim3{slots, unsigned(batch.kv_heads)}, Dim3{256}, 0, &args, seed);
        attention_backward_any_queries(Dim3{slots, unsigned(batch.heads)}, Dim3{256}, 0, &args, seed);
        compare("d_q", d_q, want.q);
        compare("d_k", d_k, want.k);
        compare("d_v", d_v, want.v);
        if (!with_slopes || seed != 0) return;
        compare_slopes("slope of q", batch, in, &Inputs::q, d_out, d_q);
        compare_slopes("slope of k", batch, in, &Inputs::k, d_out, d_k);
        compare_slopes("slope of v", batch, in, &Inputs::v, d_out, d_v);
    });
}

int main() {
    run({4, 2, 5, 0, {1, 3, 9}}, true);
    run({2, 1, 16, 4, {13, 2}}, true);
    run({2, 1, 16, 4, {13, 2}, 0.5}, true);
    run({2, 1, 33, 0, {40}, 2.0}, true);
    run({3, 1, 33, 0, {1, 40}}, false);
    run({2, 2, 80, 0, {70}}, false);
    run({2, 1, 48, 20, {67, 32}}, false);
    run({1, 1, 512, 0, {33}}, false);
}
