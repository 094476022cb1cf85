// Adapters in slots, rows that use them, and what the layers then give, in f64: for the tests of lora.cu and
// lora_mma.cu.
#pragma once

#include <cstring>
#include <memory>

#include "check.hpp"

// Numbers of an element type that is known at run time, as the device has them; they may begin off a multiple of 16
// bytes.
class Elements {
public:
    Elements(const std::vector<float>& values, int type, bool off)
        : size(type == F32 ? 4 : 2), offset(off ? size : 0), type(type), bytes(values.size() * size + offset) {
        for (size_t i = 0; i < values.size(); i++) store_element(get(), i, values[i], type);
    }
    unsigned char* get() { return bytes.get() + offset; }
    float at(size_t i) { return load_element(get(), i, type); }

private:
    size_t size, offset;
    int type;
    Buffer<unsigned char> bytes;
};

struct Factors {
    int rank = 0;
    std::vector<float> a, b, out_scale;  // [rank, cols] and [features, rank], rounded to the type
    std::unique_ptr<Elements> packed_a, packed_b;
    std::unique_ptr<Buffer<float>> packed_scale;
    LoraEntry entry{};
};

inline std::vector<float> rounded_numbers(Random& random, size_t len, int type) {
    std::vector<float> values(len);
    for (float& v : values) {
        unsigned char bytes[4];
        store_element(bytes, 0, random.range(-1.0f, 1.0f), type);
        v = load_element(bytes, 0, type);
    }
    return values;
}

inline Factors random_factors(Random& random, int rank, int cols, int features, int type, bool dora) {
    Factors f;
    f.rank = rank;
    f.a = rounded_numbers(random, size_t(rank) * cols, type);
    f.b = rounded_numbers(random, size_t(features) * rank, type);
    std::vector<float> a, b;
    for (int k = 0; k < cols; k++) {
        for (int r = 0; r < rank; r++) a.push_back(f.a[size_t(r) * cols + k]);
    }
    for (int panel = 0; panel < features; panel += 16) {
        for (int r = 0; r < rank; r++) {
            for (int o = panel; o < std::min(panel + 16, features); o++) b.push_back(f.b[size_t(o) * rank + r]);
        }
    }
    bool off = random.below(4) == 0;
    f.packed_a = std::make_unique<Elements>(a, type, off);
    f.packed_b = std::make_unique<Elements>(b, type, off);
    if (dora) f.packed_scale = std::make_unique<Buffer<float>>(random_floats<float>(random, features, 2.0f));
    const float* out_scale = dora ? f.packed_scale->get() : nullptr;
    f.entry = LoraEntry{f.packed_a->get(), f.packed_b->get(), out_scale, random.range(0.5f, 2.0f), u32(rank), u32(type), 0};
    return f;
}

struct TargetSpec {
    int features;
    bool has_bias, has_residual;
};

class LoraCase {
public:
    int rows, cols;
    std::vector<TargetSpec> specs;
    int num_slots, num_modules;
    std::vector<Factors> factors;  // [slots, modules]
    Buffer<LoraEntry> entries;
    Buffer<u32> slots;
    Buffer<float> scales;
    std::unique_ptr<Buffer<float>> low;
    std::vector<std::unique_ptr<Elements>> x;
    std::vector<Buffer<float>> out, bias, residual;
    std::vector<std::vector<float>> before;
    LoraArgs args{};

    // Targets use modules 1, 2, ... of `specs.size() + 1`. An x a target if `own_x`, else one for all; rows are
    // `x_stride` apart.
    LoraCase(uint64_t seed, int cols, std::vector<TargetSpec> specs, std::vector<u32> row_slots, int num_slots,
             const std::vector<int>& ranks, int x_type, bool own_x, int x_stride, int split_len)
        : rows(int(row_slots.size())), cols(cols), specs(specs), num_slots(num_slots), num_modules(int(specs.size()) + 1),
          entries(size_t(num_slots) * num_modules), slots(rows), scales(rows) {
        Random random(seed);
        int max_rank = 0, turn = int(seed);
        for (int slot = 0; slot < num_slots; slot++) {
            for (int module = 0; module < num_modules; module++, turn++) {
                Factors f;
                int features = module == 0 ? 1 : specs[size_t(module) - 1].features;
                // Some slots leave some modules alone.
                if (module > 0 && turn % 7 != 3) {
                    int rank = ranks[size_t(turn) % ranks.size()];
                    f = random_factors(random, rank, cols, features, turn % 3, random.below(4) == 0);
                }
                max_rank = std::max(max_rank, f.rank);
                entries[size_t(slot) * num_modules + module] = f.entry;
                factors.push_back(std::move(f));
            }
        }
        for (int row = 0; row < rows; row++) {
            slots[row] = row_slots[size_t(row)];
            scales[row] = random.range(-1.5f, 1.5f);
        }
        for (size_t t = 0; t < specs.size(); t++) {
            if (t == 0 || own_x) {
                int type = own_x ? int(t + size_t(x_type)) % 3 : x_type;
                std::vector<float> numbers = rounded_numbers(random, size_t(rows - 1) * x_stride + cols, type);
                x.push_back(std::make_unique<Elements>(numbers, type, own_x && t == 1));
            }
            size_t len = size_t(rows) * specs[t].features;
            out.push_back(random_floats<float>(random, len, 3.0f));
            before.emplace_back(out[t].get(), out[t].get() + len);
            bias.push_back(random_floats<float>(random, specs[t].features));
            residual.push_back(random_floats<float>(random, len));
            args.targets[t] = LoraTarget{x.back()->get(), out[t].get(), specs[t].has_bias ? bias[t].get() : nullptr,
                                         specs[t].has_residual ? residual[t].get() : nullptr, u64(x_stride), u32(t + 1),
                                         specs[t].features, own_x ? int(t + size_t(x_type)) % 3 : x_type, 0};
        }
        args.entries = entries.get();
        args.slots = slots.get();
        args.scales = scales.get();
        args.num_targets = int(specs.size());
        args.num_modules = num_modules;
        args.rows = rows;
        args.cols = cols;
        args.split_len = split_len;
        args.splits = (cols + split_len - 1) / split_len;
        args.max_rank = (max_rank + 3) / 4 * 4;
        low = std::make_unique<Buffer<float>>(size_t(args.splits) * rows * specs.size() * args.max_rank);
        args.low = low->get();
    }

    // Checks every element of `out`, within `bound` of the magnitudes; rows that `is_done` leaves out are to be as
    // before.
    template <class IsDone>
    void verify(const std::string& what, double bound, IsDone is_done) {
        for (int row = 0; row < rows; row++) {
            for (size_t t = 0; t < specs.size(); t++) {
                u32 slot = slots[row];
                const Factors* f = slot < u32(num_slots) ? &factors[size_t(slot) * num_modules + t + 1] : nullptr;
                if (f && f->rank > 0 && is_done(row)) verify_row(what, bound, row, t, *f);
                else unchanged(what, row, t);
            }
        }
    }

private:
    void unchanged(const std::string& what, int row, size_t t) {
        size_t start = size_t(row) * specs[t].features;
        for (int o = 0; o < specs[t].features; o++) {
            check(what + ", a row without an update", start + o, out[t][start + o], before[t][start + o], 0.0);
        }
    }

    void verify_row(const std::string& what, double bound, int row, size_t t, const Factors& f) {
        Elements& xs = *x[x.size() > 1 ? t : 0];
        double factor = double(f.entry.scale) * scales[row];
        std::vector<Sum> products(size_t(f.rank));
        for (int r = 0; r < f.rank; r++) {
            for (int k = 0; k < cols; k++) {
                double xk = xs.at(size_t(row) * args.targets[t].x_stride + k);
                products[size_t(r)].add(xk * f.a[size_t(r) * cols + k]);
            }
        }
        for (int o = 0; o < specs[t].features; o++) {
            size_t at = size_t(row) * specs[t].features + o;
            double unscaled = (specs[t].has_bias ? bias[t][o] : 0.0) + (specs[t].has_residual ? residual[t][at] : 0.0);
            Sum want;
            want.add(before[t][at]);
            if (f.entry.out_scale) want.add(-unscaled);
            for (int r = 0; r < f.rank; r++) {
                double b = f.b[size_t(o) * f.rank + r];
                want.value += factor * products[size_t(r)].value * b;
                want.magnitude += std::fabs(factor * products[size_t(r)].magnitude * b);
            }
            if (f.entry.out_scale) {
                double s = f.entry.out_scale[o];
                want.value = s * want.value + unscaled;
                want.magnitude = std::fabs(s) * want.magnitude + std::fabs(unscaled);
            }
            std::string where = what + ", row " + std::to_string(row) + ", target " + std::to_string(t);
            check(where, size_t(o), out[t][at], want.value, bound * want.magnitude);
        }
    }
};

// Slots of rows: runs of random lengths up to `longest`, NO_SLOT among them.
inline std::vector<u32> random_slots(Random& random, int rows, int num_slots, int longest) {
    std::vector<u32> slots;
    while (int(slots.size()) < rows) {
        int slot = random.below(num_slots + 1);
        for (int i = 1 + random.below(longest); i > 0 && int(slots.size()) < rows; i--) {
            slots.push_back(slot == num_slots ? NO_SLOT : u32(slot));
        }
    }
    return slots;
}

// Runs of one slot within tiles of 64 rows, from the definition.
inline std::vector<int> run_lengths(const Buffer<u32>& slots) {
    int rows = int(slots.size());
    std::vector<int> lengths(slots.size());
    for (int row = 0; row < rows; row++) {
        int first = row, last = row;
        while (first % 64 > 0 && slots[size_t(first) - 1] == slots[size_t(row)]) first--;
        while (last + 1 < rows && (last + 1) % 64 > 0 && slots[size_t(last) + 1] == slots[size_t(row)]) last++;
        lengths[size_t(row)] = last - first + 1;
    }
    return lengths;
}
