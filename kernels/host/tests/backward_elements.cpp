#include "../../backward/elements_backward.cu"

#include "check.hpp"

// `n` elements after `offset` others, which nobody may touch: tensors may begin at any float.
struct Operand {
    Buffer<float> all;
    int offset;

    explicit Operand(size_t n, int offset) : all(n + offset), offset(offset) {}
    float* get() { return all.get() + offset; }
    float& operator[](size_t i) { return all[i + offset]; }
    void copy(Operand& from) {
        for (size_t i = 0; i + offset < all.size(); i++) (*this)[i] = from[i];
    }
    void check_offset() {
        for (int i = 0; i < offset; i++) {
            if (!std::isnan(all[i])) fail("something before the operand is written");
        }
    }
};

Operand random_operand(Random& random, size_t n, int offset, float spread = 1.0f) {
    Operand operand(n, offset);
    for (size_t i = 0; i < n; i++) operand[i] = random.range(-spread, spread);
    return operand;
}

Dim3 grid_for(size_t n) { return Dim3{unsigned((n + 1023) / 1024)}; }

void silu_mul(size_t n, int offset, bool in_place, unsigned seed) {
    Random random(n);
    Operand gate = random_operand(random, n, offset, 12.0f), up = random_operand(random, n, offset);
    Operand d_out = random_operand(random, n, offset), d_gate(n, offset), d_up(n, offset), copy(n, offset);
    copy.copy(d_out);
    SiluMulBackwardArgs args{gate.get(), up.get(), d_out.get(), d_gate.get(), d_up.get(), n};
    if (in_place) args.d_out = args.d_gate = copy.get();
    silu_mul_backward(grid_for(n), Dim3{256}, 0, &args, seed);
    for (size_t i = 0; i < n; i++) {
        const double g = gate[i], s = 1.0 / (1.0 + std::exp(-g)), slope = s + g * s * (1.0 - s);
        const double of_slope = s + std::fabs(g) * s * (1.0 - s), d = d_out[i];
        check("d_gate", i, args.d_gate[i], d * up[i] * slope, 1e-6 * std::fabs(d * up[i]) * of_slope + 1e-12);
        check("d_up", i, d_up[i], d * g * s, 1e-6 * std::fabs(d * g * s) + 1e-12);
    }
    d_gate.check_offset();
    d_up.check_offset();
}

// Values at which the exponential is infinite or zero.
void silu_mul_far_out() {
    Buffer<float> gate(3), up(3, 1.0f), d_out(3, 1.0f), d_gate(3), d_up(3);
    gate[0] = -200.0f;
    gate[1] = 200.0f;
    gate[2] = 0.0f;
    SiluMulBackwardArgs args{gate.get(), up.get(), d_out.get(), d_gate.get(), d_up.get(), 3};
    silu_mul_backward(Dim3{1}, Dim3{256}, 0, &args, 0);
    const double want_gate[] = {0.0, 1.0, 0.5}, want_up[] = {0.0, 200.0, 0.0};
    for (size_t i = 0; i < 3; i++) {
        check("d_gate far out", i, d_gate[i], want_gate[i], 1e-12);
        check("d_up far out", i, d_up[i], want_up[i], 1e-12);
    }
}

double gelu_of(double x, bool by_tanh) {
    if (by_tanh) return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
}

void gelu(size_t n, int offset, bool by_tanh, bool gated, unsigned seed) {
    Random random(n);
    Operand x = random_operand(random, n, offset, 6.0f), up = random_operand(random, n, offset);
    Operand d_out = random_operand(random, n, offset), d_up(n, offset), d_x(n, offset);
    d_x.copy(d_out);
    GeluBackwardArgs args{x.get(), gated ? up.get() : nullptr, d_x.get(), d_x.get(), gated ? d_up.get() : nullptr, n, by_tanh};
    gelu_backward(grid_for(n), Dim3{256}, 0, &args, seed);
    for (size_t i = 0; i < n; i++) {
        const double step = 1e-5, slope = (gelu_of(x[i] + step, by_tanh) - gelu_of(x[i] - step, by_tanh)) / (2 * step);
        const double d = d_out[i], u = gated ? up[i] : 1.0;
        check("gelu's d_x", i, d_x[i], d * u * slope, 3e-6 * std::fabs(d * u) + 1e-9);
        if (gated) check("gelu's d_up", i, d_up[i], d * gelu_of(x[i], by_tanh), 2e-6 * std::fabs(d * x[i]) + 1e-9);
    }
    d_x.check_offset();
}

void softcap(size_t n, int offset, unsigned seed) {
    Random random(n);
    Operand x = random_operand(random, n, offset, 6.0f), d_out = random_operand(random, n, offset), d_x(n, offset);
    d_x.copy(d_out);
    SoftcapBackwardArgs args{x.get(), d_x.get(), d_x.get(), n, 2.0f};
    softcap_backward(grid_for(n), Dim3{256}, 0, &args, seed);
    for (size_t i = 0; i < n; i++) {
        const double t = std::tanh(x[i] / 2.0);
        check("softcap's d_x", i, d_x[i], d_out[i] * (1.0 - t * t), 1e-6 * std::fabs(d_out[i]));
    }
    d_x.check_offset();
}

// Slopes far out are numbers.
void gelu_far_out() {
    const float xs[] = {-1e30f, -1e4f, 1e4f, 1e30f};
    for (int by_tanh : {0, 1}) {
        Buffer<float> x(4), d_out(4, 1.0f), d_x(4);
        for (size_t i = 0; i < 4; i++) x[i] = xs[i];
        GeluBackwardArgs args{x.get(), nullptr, d_out.get(), d_x.get(), nullptr, 4, by_tanh};
        gelu_backward(Dim3{1}, Dim3{256}, 0, &args, 0);
        for (size_t i = 0; i < 4; i++) check("gelu's slope far out", i, d_x[i], i < 2 ? 0.0 : 1.0, 1e-6);
    }
}

void add(size_t n, int offset, unsigned seed) {
    Random random(n);
    Operand from = random_operand(random, n, offset), to = random_operand(random, n, offset), before(n, offset);
    before.copy(to);
    AddScaledArgs args{from.get(), to.get(), n, -0.3f};
    add_scaled(grid_for(n), Dim3{256}, 0, &args, seed);
    for (size_t i = 0; i < n; i++) {
        const double product = double(-0.3f) * from[i];
        check("add_scaled", i, to[i], before[i] + product, 0x1p-23 * (std::fabs(before[i]) + std::fabs(product)));
    }
    to.check_offset();
}

void gather(int cols, int offset, unsigned seed) {
    Random random(static_cast<uint64_t>(cols));
    const u32 rows[] = {1, 2, 6};
    const int num_rows = 3, total = 8;
    Operand d_out = random_operand(random, size_t(num_rows) * cols, offset);
    Operand before = random_operand(random, size_t(total) * cols, offset);
    Operand d_x(size_t(total) * cols, offset);
    d_x.copy(before);
    Buffer<u32> row_idx(num_rows);
    for (int i = 0; i < num_rows; i++) row_idx[i] = rows[i];
    GatherRowsBackwardArgs args{d_out.get(), row_idx.get(), d_x.get(), cols};
    gather_rows_backward(Dim3{unsigned(num_rows), unsigned(cols + 1023) / 1024}, Dim3{256}, 0, &args, seed);
    for (int row = 0; row < total; row++) {
        int of = -1;
        for (int i = 0; i < num_rows; i++) of = int(rows[i]) == row ? i : of;
        for (int col = 0; col < cols; col++) {
            const size_t at = size_t(row) * cols + col;
            const double added = of < 0 ? 0.0 : d_out[size_t(of) * cols + col];
            check("gather_rows_backward", at, d_x[at], before[at] + added, of < 0 ? 0.0 : 0x1p-23);
        }
    }
    d_x.check_offset();
}

int main() {
    for_orders([](unsigned seed) {
        for (int offset : {0, 1}) {
            for (size_t n : {1, 4, 1023, 1024, 5003}) {
                silu_mul(n, offset, false, seed);
                silu_mul(n, offset, true, seed);
                add(n, offset, seed);
                for (bool by_tanh : {false, true}) {
                    gelu(n, offset, by_tanh, false, seed);
                    gelu(n, offset, by_tanh, true, seed);
                }
                softcap(n, offset, seed);
            }
            for (int cols : {1, 7, 576, 1025}) gather(cols, offset, seed);
        }
    });
    silu_mul_far_out();
    gelu_far_out();
}
