// Rows of logits, and their order from the definition: for the tests of sample.cu and logprobs.cu.
#pragma once

#include <algorithm>
#include <cstring>

#include "check.hpp"

// NaN counts as minus infinity, and plus infinity as the largest finite number.
inline double sane(double v) { return std::isnan(v) ? -INFINITY : std::fmin(v, 3.4028234663852886e38); }

// Tokens above minus infinity, best first, equals by id.
inline std::vector<int> ranked(const std::vector<double>& values) {
    std::vector<int> order;
    for (size_t t = 0; t < values.size(); t++) {
        if (values[t] > -INFINITY) order.push_back(int(t));
    }
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return values[size_t(a)] > values[size_t(b)]; });
    return order;
}

// With ties for the best, and what must never be drawn.
inline std::vector<float> random_logits(Random& random, int vocab) {
    const float spreads[] = {0.5f, 3.0f, 8.0f};
    float spread = spreads[random.below(3)];
    std::vector<float> logits(size_t(vocab), 0.0f);
    for (float& v : logits) v = random.range(-spread, spread);
    float top = *std::max_element(logits.begin(), logits.end());
    for (int i = 0; i < 3; i++) {
        logits[size_t(random.below(vocab))] = top;
        logits[size_t(random.below(vocab))] = NAN;
        logits[size_t(random.below(vocab))] = -INFINITY;
    }
    return logits;
}

template <class T>
Buffer<T> copy_of(const std::vector<T>& values) {
    Buffer<T> buffer(values.size());
    for (size_t i = 0; i < values.size(); i++) buffer[i] = values[i];
    return buffer;
}
