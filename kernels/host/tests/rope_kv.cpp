#include "../../rope_kv.cu"

#include <algorithm>

#include "check.hpp"

struct Case {
    int heads;
    int kv_heads;
    int head_dim;
    int half;
    std::vector<int> first_positions;  // of each sequence
    std::vector<int> rows;             // of each sequence
};

constexpr int NUM_TABLES = 3;

// A step's rows, angles and where each row lies in a cache.
struct Step {
    explicit Step(const Case& c)
        : num_seqs(int(c.rows.size())), positions(count(c.rows)), rope_idx(positions.size()), seq_starts(num_seqs + 1) {
        Random random(uint64_t(c.head_dim * 100 + c.half));
        int last = 0;
        for (int s = 0, row = 0; s < num_seqs; s++) {
            seq_starts[s] = u32(row);
            for (int i = 0; i < c.rows[s]; i++, row++) {
                positions[row] = u32(c.first_positions[s] + i);
                rope_idx[row] = u32(random.below(NUM_TABLES));
                last = std::max(last, int(positions[row]));
            }
        }
        seq_starts[num_seqs] = u32(positions.size());
        for (int t = 0; t < NUM_TABLES; t++) {
            tables.push_back(random_floats<float>(random, size_t(last + 1) * c.half * 2));
            pointers.push_back(tables.back().get());
        }
        max_blocks = last / BLOCK_TOKENS + 2;
        num_blocks = num_seqs * max_blocks;
        for (int b = 0; b < num_blocks; b++) block_tables.push_back(u32(b));
        for (int b = num_blocks - 1; b > 0; b--) std::swap(block_tables[b], block_tables[random.below(b + 1)]);
        // Blocks that hold none of the step's rows are not to be touched.
        for (int s = 0; s < num_seqs; s++) {
            for (int b = 0; b < max_blocks; b++) {
                int first = c.first_positions[s] / BLOCK_TOKENS;
                int end = (c.first_positions[s] + c.rows[s] - 1) / BLOCK_TOKENS + 1;
                if (b < first || b >= end || c.rows[s] == 0) block_tables[s * max_blocks + b] = 0xffffffff;
            }
        }
    }

    static size_t count(const std::vector<int>& rows) {
        size_t sum = 0;
        for (int n : rows) sum += size_t(n);
        return sum;
    }

    int num_rows() const { return int(positions.size()); }
    int seq_of(int row) const {
        int seq = 0;
        while (seq_starts[seq + 1] <= u32(row)) seq++;
        return seq;
    }

    int num_seqs, max_blocks, num_blocks;
    Buffer<u32> positions, rope_idx, seq_starts;
    std::vector<Buffer<float>> tables;
    std::vector<const float*> pointers;
    std::vector<u32> block_tables;
};

// Checks a row's heads, `got(head, dim)`, against the rotation of `x`; `half` 0 for a copy.
template <class T, class Got>
void check_row(const std::string& what, const Step& step, int row, const Buffer<float>& x, int heads, int head_dim, int half,
               double direction, Got got) {
    const Buffer<float>& table = step.tables[step.rope_idx[row]];
    for (int head = 0; head < heads; head++) {
        const size_t at = (size_t(row) * heads + head) * head_dim;
        for (int d = 0; d < head_dim; d++) {
            Sum want;
            if (d >= 2 * half) {
                want.add(x[at + d]);
            } else {
                size_t angle = (size_t(step.positions[row]) * half + d % half) * 2;
                double cosine = table[angle], sine = direction * table[angle + 1];
                want.add(x[at + d] * cosine);
                want.add(d < half ? -sine * x[at + d + half] : sine * x[at + d - half]);
            }
            double bound = rounding<T>(want.value) + (d < 2 * half ? 2e-7 * want.magnitude : 0.0);
            check(what, at + d, got(head, d), want.value, bound);
        }
    }
}

template <class T>
double element(const Buffer<T>& tensor, size_t i) {
    return to_f32(tensor[i]);
}

// What the cache holds of a row; and that nothing else was written.
template <class T>
void check_cache(const std::string& what, const Step& step, const Case& c, const Buffer<T>& cache, const Buffer<float>& x,
                 int half, double direction) {
    std::vector<bool> is_written(cache.size());
    for (int row = 0; row < step.num_rows(); row++) {
        u32 position = step.positions[row];
        u32 block = step.block_tables[step.seq_of(row) * step.max_blocks + position / BLOCK_TOKENS];
        auto place = [&](int head, int d) {
            return ((size_t(block) * c.kv_heads + head) * BLOCK_TOKENS + position % BLOCK_TOKENS) * c.head_dim + d;
        };
        auto got = [&](int head, int d) {
            is_written[place(head, d)] = true;
            return element(cache, place(head, d));
        };
        check_row<T>(what, step, row, x, c.kv_heads, c.head_dim, half, direction, got);
    }
    for (size_t i = 0; i < cache.size(); i++) {
        if (!is_written[i] && !std::isnan(element(cache, i))) fail(what + ": " + std::to_string(i) + " is not to be written");
    }
}

void check_tensor(const std::string& what, const Step& step, const Case& c, const Buffer<float>& out, const Buffer<float>& x,
                  int heads, double direction) {
    for (int row = 0; row < step.num_rows(); row++) {
        auto got = [&](int head, int d) { return double(out[(size_t(row) * heads + head) * c.head_dim + d]); };
        check_row<float>(what, step, row, x, heads, c.head_dim, c.half, direction, got);
    }
}

struct Operands {
    Operands(const Step& step, const Case& c, Random random)
        : q(random_floats<float>(random, size_t(step.num_rows()) * c.heads * c.head_dim)),
          k(random_floats<float>(random, size_t(step.num_rows()) * c.kv_heads * c.head_dim)),
          v(random_floats<float>(random, k.size())),
          q_out(q.size()),
          k_out(k.size()) {}
    Buffer<float> q, k, v, q_out, k_out;
};

void run_rope(const Case& c, float direction, unsigned blocks_of_row, unsigned seed) {
    Step step(c);
    Operands x(step, c, Random(1));
    RopeArgs args{};
    args.x0 = x.q.get(), args.x1 = x.k.get(), args.out0 = x.q_out.get(), args.out1 = x.k_out.get();
    args.tables = step.pointers.data(), args.positions = step.positions.get(), args.rope_idx = step.rope_idx.get();
    args.heads0 = c.heads, args.heads1 = c.kv_heads, args.head_dim = c.head_dim, args.half = c.half;
    args.direction = direction;
    rope(Dim3{unsigned(step.num_rows()), blocks_of_row}, Dim3{256}, 0, &args, seed);
    check_tensor("rope, first", step, c, x.q_out, x.q, c.heads, direction);
    check_tensor("rope, second", step, c, x.k_out, x.k, c.kv_heads, direction);
}

template <class T, class Kernel>
void run_rope_kv(Kernel kernel, const Case& c, bool with_k_out, unsigned blocks_of_row, unsigned seed) {
    Step step(c);
    Operands x(step, c, Random(2));
    Buffer<T> k_cache(size_t(step.num_blocks) * c.kv_heads * BLOCK_TOKENS * c.head_dim), v_cache(k_cache.size());
    RopeKvArgs args{};
    args.q = x.q.get(), args.k = x.k.get(), args.v = x.v.get(), args.q_out = x.q_out.get();
    args.k_out = with_k_out ? x.k_out.get() : nullptr;
    args.k_cache = k_cache.get(), args.v_cache = v_cache.get(), args.tables = step.pointers.data();
    args.positions = step.positions.get(), args.rope_idx = step.rope_idx.get(), args.seq_starts = step.seq_starts.get();
    args.block_tables = step.block_tables.data(), args.num_seqs = step.num_seqs, args.max_blocks = step.max_blocks;
    args.heads = c.heads, args.kv_heads = c.kv_heads, args.head_dim = c.head_dim, args.half = c.half, args.direction = 1.0f;
    kernel(Dim3{unsigned(step.num_rows()), blocks_of_row}, Dim3{256}, 0, &args, seed);
    check_tensor("rope_kv, queries", step, c, x.q_out, x.q, c.heads, 1.0);
    if (with_k_out) check_tensor("rope_kv, keys", step, c, x.k_out, x.k, c.kv_heads, 1.0);
    check_cache("rope_kv, cached keys", step, c, k_cache, x.k, c.half, 1.0);
    check_cache("rope_kv, cached values", step, c, v_cache, x.v, 0, 1.0);
}

KvWriteArgs kv_write_args(const Step& step, const Case& c, const Operands& x, void* k_cache, void* v_cache) {
    KvWriteArgs args{};
    args.k = x.k.get(), args.v = x.v.get(), args.k_cache = k_cache, args.v_cache = v_cache;
    args.positions = step.positions.get(), args.seq_starts = step.seq_starts.get();
    args.block_tables = step.block_tables.data(), args.num_seqs = step.num_seqs, args.max_blocks = step.max_blocks;
    args.kv_heads = c.kv_heads, args.head_dim = c.head_dim;
    return args;
}

template <class T, class Kernel>
void run_kv_write(Kernel kernel, const Case& c, unsigned seed) {
    Step step(c);
    Operands x(step, c, Random(3));
    Buffer<T> k_cache(size_t(step.num_blocks) * c.kv_heads * BLOCK_TOKENS * c.head_dim), v_cache(k_cache.size());
    KvWriteArgs args = kv_write_args(step, c, x, k_cache.get(), v_cache.get());
    kernel(Dim3{unsigned(step.num_rows())}, Dim3{256}, 0, &args, seed);
    check_cache("kv_write, keys", step, c, k_cache, x.k, 0, 1.0);
    check_cache("kv_write, values", step, c, v_cache, x.v, 0, 1.0);
}

// Fault: bad-block
void bad_block() {
    Case c{1, 1, 64, 32, {0}, {20}};
    Step step(c);
    step.block_tables[1] = u32(step.num_blocks);
    Operands x(step, c, Random(4));
    Buffer<f16> k_cache(size_t(step.num_blocks) * BLOCK_TOKENS * 64), v_cache(k_cache.size());
    KvWriteArgs args = kv_write_args(step, c, x, k_cache.get(), v_cache.get());
    kv_write_f16(Dim3{20}, Dim3{256}, 0, &args, 0);
}

int main(int argc, char**) {
    if (argc > 1) return bad_block(), 0;
    // Many sequences, so that the search for a row's takes rounds, some without rows.
    Case many{1, 1, 4, 1, {}, {}};
    for (int s = 0; s < 1100; s += 10) {
        many.first_positions.push_back(s % 37);
        many.rows.push_back(s % 4 == 0 ? 0 : 1 + s % 3);
    }
    const std::vector<Case> cases = {
        {3, 1, 64, 32, {0}, {1}},
        {4, 2, 128, 64, {7, 30, 0}, {2, 1, 18}},
        {2, 2, 80, 40, {15}, {2}},
        {4, 1, 64, 16, {300, 16}, {33, 1}},
        {2, 1, 128, 63, {5}, {3}},
        {1, 3, 33, 5, {1, 2}, {1, 2}},
        {1, 1, 2, 1, {0}, {1}},
        many,
    };
    for_orders([&](unsigned seed) {
        for (const Case& c : cases) {
            for (unsigned blocks_of_row : {1u, 3u}) {
                run_rope(c, 1.0f, blocks_of_row, seed);
                run_rope_kv<bf16>(rope_kv_bf16, c, true, blocks_of_row, seed);
            }
            run_rope(c, -1.0f, 2, seed);
            run_rope_kv<f16>(rope_kv_f16, c, false, 1, seed);
            run_rope_kv<float>(rope_kv_f32, c, true, 1, seed);
            run_kv_write<bf16>(kv_write_bf16, c, seed);
            run_kv_write<f16>(kv_write_f16, c, seed);
            run_kv_write<float>(kv_write_f32, c, seed);
        }
    });
}
