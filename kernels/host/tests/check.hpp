// What tests of kernels share: random operands, buffers of just the right size, and comparison with f64 references.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <type_traits>
#include <vector>

// SplitMix64 (Steele et al., OOPSLA 2014).
class Random {
public:
    explicit Random(uint64_t seed) : state(seed) {}

    uint64_t bits() {
        uint64_t z = (state += 0x9e3779b97f4a7c15ull);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return z ^ (z >> 31);
    }
    // In [0, n).
    int below(int n) { return int(bits() % uint64_t(n)); }
    // In [from, to).
    float range(float from, float to) { return from + (to - from) * float(bits() >> 40) / float(1 << 24); }

private:
    uint64_t state;
};

// Memory of exactly `len` elements, all bits set at first: NaN, and no index. AddressSanitizer sees what lies outside.
template <class T>
class Buffer {
public:
    explicit Buffer(size_t len) : len(len), data(static_cast<T*>(aligned_alloc(256, (len * sizeof(T) + 255) / 256 * 256))) {
#if defined(__SANITIZE_ADDRESS__)
        // aligned_alloc wants whole multiples; malloc of the exact size is 16-byte aligned, which is what kernels ask for.
        free(data);
        data = static_cast<T*>(malloc(len * sizeof(T)));
#endif
        memset(static_cast<void*>(data), 0xff, len * sizeof(T));
    }
    Buffer(size_t len, T value) : Buffer(len) {
        for (size_t i = 0; i < len; i++) data[i] = value;
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    Buffer(Buffer&& other) : len(other.len), data(other.data) { other.data = nullptr; }
    ~Buffer() { free(data); }

    T* get() { return data; }
    const T* get() const { return data; }
    size_t size() const { return len; }
    T& operator[](size_t i) { return data[i]; }
    const T& operator[](size_t i) const { return data[i]; }

private:
    size_t len;
    T* data;
};

// Uniform in [-spread, spread), rounded to T.
template <class T>
Buffer<T> random_floats(Random& random, size_t len, float spread = 1.0f) {
    Buffer<T> buffer(len);
    for (size_t i = 0; i < len; i++) buffer[i] = from_f32<T>(random.range(-spread, spread));
    return buffer;
}

template <class T>
constexpr int element_type() {
    return std::is_same<T, float>::value ? F32 : std::is_same<T, bf16>::value ? BF16 : F16;
}

// What rounding to T may cost, relative to the value.
template <class T>
constexpr double rounding() {
    return std::is_same<T, float>::value ? 0x1p-24 : std::is_same<T, f16>::value ? 0x1p-11 : 0x1p-8;
}

// The same, absolute, for a value that may be small.
template <class T>
double rounding(double value) {
    return std::fabs(value) * rounding<T>() + (std::is_same<T, f16>::value ? 0x1p-25 : 1e-38);
}

// A sum in f64, and the sum of the magnitudes that were added: errors are relative to the latter.
struct Sum {
    double value = 0.0;
    double magnitude = 0.0;

    void add(double term) {
        value += term;
        magnitude += std::fabs(term);
    }
};

[[noreturn]] inline void fail(const std::string& what) {
    fprintf(stderr, "%s\n", what.c_str());
    exit(1);
}

// Compares one element; NaN never fits.
inline void check(const std::string& what, size_t i, double got, double want, double bound) {
    if (!(std::fabs(got - want) <= bound)) {
        char text[160];
        snprintf(text, sizeof(text), ": element %zu is %.9g, expected %.9g within %.3g", i, got, want, bound);
        fail(what + text);
    }
}

// Orders of threads: the plain one and some random ones.
template <class F>
void for_orders(F f) {
    for (unsigned seed : {0u, 1u, 2u}) f(seed);
}
