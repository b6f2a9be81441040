// What logistic losses compute with: ln(1 + e^-|z|), which no logit overflows and whose small values keep their digits.
#pragma once
#include "ptx.cuh"

// ln(1 + x) for 0 <= x <= 1 within 1.5 units in the last place, also relative near 0, where log(1 + x) is not: as
// src/math.rs.
__device__ __forceinline__ float ln_1p(float x) {
    float q = 5.36483014e-3f;
    q = fmaf(q, x, -3.00658159e-2f);
    q = fmaf(q, x, 7.92045742e-2f);
    q = fmaf(q, x, -0.137538061f);
    q = fmaf(q, x, 0.191536561f);
    q = fmaf(q, x, -0.248571634f);
    q = fmaf(q, x, 0.333213240f);
    q = fmaf(q, x, -0.499996483f);
    return fmaf(x * x, q, x);
}
