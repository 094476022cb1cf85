// GELU (Hendrycks & Gimpel, arXiv 1606.08415), by the error function or by the tangent.
#pragma once
#include "kernel.cuh"

#define GELU_ROOT 0.7978845608028654f  // sqrt(2 / pi)
#define GELU_CUBE 0.044715f

DEVICE float gelu_tangent(float x) { return tanhf(GELU_ROOT * x * (1.0f + GELU_CUBE * x * x)); }

// gelu(x) / x, which is 0 far below and 1 far above. Where the error function is near -1 its complement has the digits.
DEVICE float gelu_share(float x, int by_tanh) {
    return by_tanh ? 0.5f * (1.0f + gelu_tangent(x)) : 0.5f * erfcf(-x * 0.7071067811865476f);
}

// The derivative of gelu.
DEVICE float gelu_slope(float x, int by_tanh) {
    // Far out the second term is 0, where its factors would be no numbers; NaN stays.
    const float near = x > 20.0f ? 20.0f : x < -20.0f ? -20.0f : x;
    if (by_tanh) {
        const float t = gelu_tangent(x);
        return 0.5f * (1.0f + t) + 0.5f * near * (1.0f - t * t) * GELU_ROOT * (1.0f + 3.0f * GELU_CUBE * near * near);
    }
    return gelu_share(x, 0) + near * expf(-0.5f * near * near) * 0.3989422804014327f;  // 1 / sqrt(2 pi)
}
