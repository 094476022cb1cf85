#include "../../backward/adamw.cu"

#include "check.hpp"

// Three steps of the paper's algorithm 2 (with the decay first, as all implementations have it).
void run(size_t n, int offset, unsigned seed) {
    const double learning_rate = 0.01f, beta1 = 0.9f, beta2 = 0.99f, epsilon = 1e-8f, decay = 0.1f, gradient_scale = 0.5f;
    Random random(n);
    auto p = random_floats<float>(random, n + offset);
    Buffer<float> m(n + offset, 0.0f), v(n + offset, 0.0f);
    std::vector<double> want(n), first(n, 0.0), second(n, 0.0);
    for (size_t i = 0; i < n; i++) want[i] = p[i + offset];
    const float untouched = p[0];
    for (int step = 1; step <= 3; step++) {
        auto g = random_floats<float>(random, n + offset);
        AdamWArgs args{};
        args.parameters = p.get() + offset;
        args.gradients = g.get() + offset;
        args.first = m.get() + offset;
        args.second = v.get() + offset;
        args.n = n;
        args.beta1 = float(beta1);
        args.beta2 = float(beta2);
        args.epsilon = float(epsilon);
        args.gradient_scale = float(gradient_scale);
        args.keep = 1.0f - 0.01f * 0.1f;
        args.rate = 0.01f / float(1.0 - std::pow(beta1, step));
        args.second_correction = float(std::sqrt(1.0 - std::pow(beta2, step)));
        adamw(Dim3{unsigned((n + 1023) / 1024)}, Dim3{256}, 0, &args, seed);
        for (size_t i = 0; i < n; i++) {
            const double d = gradient_scale * g[i + offset];
            first[i] = beta1 * first[i] + (1.0 - beta1) * d;
            second[i] = beta2 * second[i] + (1.0 - beta2) * d * d;
            const double hat = second[i] / (1.0 - std::pow(beta2, step));
            want[i] -= learning_rate * decay * want[i];
            want[i] -= learning_rate * first[i] / (1.0 - std::pow(beta1, step)) / (std::sqrt(hat) + epsilon);
            check("first moment", i, m[i + offset], first[i], 1e-6 * 0.1);
            check("second moment", i, v[i + offset], second[i], 1e-6 * 0.01);
            check("parameter", i, p[i + offset], want[i], 4e-7 * step * (std::fabs(want[i]) + 0.1));
        }
    }
    if (offset && p[0] != untouched) fail("adamw writes before its parameters");
}

int main() {
    for_orders([](unsigned seed) {
        for (size_t n : {1, 4, 1027, 5000}) {
            run(n, 0, seed);
            run(n, 1, seed);
        }
    });
}
