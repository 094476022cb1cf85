// What tests of attention share: steps with ragged sequences over a paged cache, and attention from its definition, in f64.
#pragma once

#include <algorithm>

#include "../../lib/paged.cuh"
#include "check.hpp"

// A sequence: its tokens after the step, and how many of them, the last, are rows of the step.
struct Sequence {
    int context;
    int rows;
};

struct Shape {
    int heads;
    int kv_heads;
    int head_dim;
    int window;  // 0 for none
    float spread = 1.8f;
    float softcap = 0.0f;  // 0 for none
};

inline std::string describe(const Shape& shape) {
    char text[120];
    snprintf(text, sizeof(text), "%d heads over %d of %d, window %d", shape.heads, shape.kv_heads, shape.head_dim,
             shape.window);
    return text;
}

// A step's operands. What no row sees is NaN in the cache and an impossible block in the tables.
template <class T, class Out>
class Step {
public:
    Step(const Shape& shape, std::vector<Sequence> sequences, uint64_t seed)
        : shape(shape),
          sequences(std::move(sequences)),
          num_rows(count_rows()),
          max_blocks(count_blocks(false)),
          num_blocks(count_blocks(true) + 1),
          q(make_queries(seed)),
          k(size_t(num_blocks) * shape.kv_heads * BLOCK_TOKENS * shape.head_dim),
          v(k.size()),
          out(size_t(num_rows) * shape.heads * shape.head_dim),
          lse(size_t(num_rows) * shape.heads),
          positions(num_rows),
          seq_starts(this->sequences.size() + 1),
          block_tables(this->sequences.size() * max_blocks) {
        Random random(seed ^ 99);
        std::vector<u32> blocks(num_blocks);
        for (int b = 0; b < num_blocks; b++) blocks[b] = u32(b);
        for (int b = num_blocks - 1; b > 0; b--) std::swap(blocks[b], blocks[random.below(b + 1)]);
        u32 row = 0;
        for (size_t s = 0; s < this->sequences.size(); s++) {
            const Sequence& sequence = this->sequences[s];
            seq_starts[s] = row;
            int first_position = sequence.context - sequence.rows;
            for (int i = 0; i < sequence.rows; i++) positions[row++] = u32(first_position + i);
            // A sequence without rows has no blocks.
            if (sequence.rows == 0) continue;
            for (int p = first_seen(first_position); p < sequence.context; p++) {
                u32& block = block_tables[s * max_blocks + p / BLOCK_TOKENS];
                if (block == 0xffffffff) block = blocks.back(), blocks.pop_back();
                for (int h = 0; h < shape.kv_heads; h++) {
                    for (int d = 0; d < shape.head_dim; d++) {
                        k[place(s, p, h) + d] = from_f32<T>(random.range(-shape.spread, shape.spread));
                        v[place(s, p, h) + d] = from_f32<T>(random.range(-shape.spread, shape.spread));
                    }
                }
            }
        }
        seq_starts[this->sequences.size()] = row;
    }

    AttentionArgs args(int min_rows) {
        AttentionArgs args{};
        args.q = q.get(), args.k_cache = k.get(), args.v_cache = v.get(), args.out = out.get(), args.lse = lse.get();
        args.positions = positions.get(), args.seq_starts = seq_starts.get(), args.block_tables = block_tables.get();
        args.num_seqs = int(sequences.size()), args.max_blocks = max_blocks;
        args.heads = shape.heads, args.kv_heads = shape.kv_heads, args.head_dim = shape.head_dim;
        args.window = shape.window, args.min_rows = min_rows, args.out_type = element_type<Out>();
        args.scale = scale(), args.softcap = shape.softcap;
        return args;
    }

    // Compares the rows of sequences with `min_rows` to `max_rows` rows; the others have to be as they were. Scores may be
    // off by `error` of the magnitudes that they add up, weights by `weight_error`. `round_query` is what the kernel makes of
    // a query.
    template <class Round>
    void check_results(const std::string& kernel, int min_rows, int max_rows, double error, double weight_error,
                       Round round_query) {
        std::string what = kernel + ", " + describe(shape);
        for (size_t s = 0; s < sequences.size(); s++) {
            for (u32 row = seq_starts[s]; row < seq_starts[s + 1]; row++) {
                bool is_wanted = sequences[s].rows >= min_rows && sequences[s].rows <= max_rows;
                for (int head = 0; head < shape.heads; head++) {
                    if (is_wanted) check_row(what, s, row, head, error, weight_error, round_query);
                    else check_untouched(what, row, head);
                }
            }
        }
    }

    // Makes one entry of a sequence's table a block past the end of the cache: AddressSanitizer has to see that it is read.
    void plant_bad_block(size_t seq, int entry) { block_tables[seq * max_blocks + entry] = u32(num_blocks); }

    // The scale in f32, as kernels get it.
    float scale() const { return 1.0f / std::sqrt(float(shape.head_dim)); }

    const Shape shape;
    const std::vector<Sequence> sequences;
    const int num_rows, max_blocks, num_blocks;
    Buffer<float> q;
    Buffer<T> k, v;
    Buffer<Out> out;
    Buffer<float> lse;
    Buffer<u32> positions, seq_starts, block_tables;

private:
    int count_rows() const {
        int rows = 0;
        for (const Sequence& sequence : sequences) rows += sequence.rows;
        return rows;
    }
    // Of all sequences; or of the longest and two more, which are never used.
    int count_blocks(bool of_all) const {
        int sum = 0, most = 0;
        for (const Sequence& sequence : sequences) {
            int blocks = (sequence.context + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
            sum += blocks;
            most = std::max(most, blocks);
        }
        return of_all ? sum : most + 2;
    }
    Buffer<float> make_queries(uint64_t seed) const {
        Random random(seed);
        return random_floats<float>(random, size_t(num_rows) * shape.heads * shape.head_dim, shape.spread);
    }
    int first_seen(int position) const { return shape.window == 0 ? 0 : std::max(0, position - shape.window + 1); }
    size_t place(size_t seq, int position, int kv_head) const {
        size_t block = block_tables[seq * max_blocks + position / BLOCK_TOKENS];
        return ((block * shape.kv_heads + kv_head) * BLOCK_TOKENS + position % BLOCK_TOKENS) * shape.head_dim;
    }

    template <class Round>
    void check_row(const std::string& what, size_t seq, u32 row, int head, double error, double weight_error,
                   Round round_query) {
        const int kv_head = head / (shape.heads / shape.kv_heads), position = int(positions[row]);
        const size_t vector = size_t(row) * shape.heads + head;
        std::vector<double> scores, query(shape.head_dim);
        for (int d = 0; d < shape.head_dim; d++) query[d] = round_query(q[vector * shape.head_dim + d], scale());
        double largest_terms = 0.0, largest = -INFINITY, total = 0.0;
        for (int p = first_seen(position); p <= position; p++) {
            Sum score;
            for (int d = 0; d < shape.head_dim; d++) score.add(query[d] * to_f32(k[place(seq, p, kv_head) + d]));
            // The bound's slope is 1 at most, so that an error in a score does not grow.
            const double bounded = shape.softcap > 0 ? shape.softcap * std::tanh(score.value / shape.softcap) : score.value;
            scores.push_back(bounded);
            largest = std::max(largest, bounded);
            largest_terms = std::max(largest_terms, score.magnitude);
        }
        for (double score : scores) total += std::exp(score - largest);
        // An error in a score is a relative error of its weight, and of the total.
        const double of_score = error * largest_terms + 1e-6;
        check(what + ", lse", vector, lse[vector], largest + std::log(total), of_score + 2e-7 * std::fabs(largest));
        for (int d = 0; d < shape.head_dim; d++) {
            Sum sum;
            for (size_t i = 0; i < scores.size(); i++) {
                int p = first_seen(position) + int(i);
                sum.add(std::exp(scores[i] - largest) / total * to_f32(v[place(seq, p, kv_head) + d]));
            }
            double bound = (2.0 * of_score + weight_error) * sum.magnitude;
            size_t at = vector * shape.head_dim + d;
            check(what, at, to_f32(out[at]), sum.value, bound + rounding<Out>(sum.value) + rounding<Out>() * bound);
        }
    }

    void check_untouched(const std::string& what, u32 row, int head) {
        size_t vector = size_t(row) * shape.heads + head;
        bool is_untouched = std::isnan(lse[vector]);
        for (int d = 0; d < shape.head_dim; d++) is_untouched &= std::isnan(to_f32(out[vector * shape.head_dim + d]));
        if (!is_untouched) fail(what + ": row " + std::to_string(row) + " is not this kernel's to write");
    }
};

// Queries as they are; scores get the scale.
inline double exact_query(float q, float scale) { return double(q) * scale; }
