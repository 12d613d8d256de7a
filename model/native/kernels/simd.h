// Small functions over vectors of kLanes floats.
//
// Every sum runs in an order that depends on the length alone, never on how rows were batched, and
// fused multiply-adds are written out (the build switches the compiler's own contraction off), so
// a row's result is the same to the last bit in any company.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && \
    defined(__AVX512VL__)
#define TICKERTAPE_AVX512
#endif

#ifdef TICKERTAPE_AVX512
#include "vectors_avx512.h"
#else
#include "vectors_avx2.h"
#endif

namespace tickertape {

// 2^x for x <= 0, relative error below 2e-7; 0 below 2^-126, where floats lose digits and processors
// become slow. Polynomial on [-0.5, 0.5].
inline Floats exp2_nonpositive(Floats x) {
    const Floats least = Floats::all(-126.0f);
    const Mask vanishes = less(x, least);
    x = max(least, x);  // in this order a NaN stays a NaN
    const Floats whole = nearest(x);
    const Floats r = x - whole;
    Floats p = Floats::all(1.5403530e-4f);
    p = fused(p, r, Floats::all(1.3333558e-3f));
    p = fused(p, r, Floats::all(9.6181291e-3f));
    p = fused(p, r, Floats::all(5.5504109e-2f));
    p = fused(p, r, Floats::all(2.4022651e-1f));
    p = fused(p, r, Floats::all(6.9314718e-1f));
    p = fused(p, r, Floats::all(1.0f));
    return select(vanishes, Floats::all(0.0f), scaled(p, whole));
}

// x / (1 + e^-x)
inline Floats silu(Floats x) {
    // e^-|x| never overflows; 1 / (1 + e^-x) follows from it for either sign.
    const Floats e = exp2_nonpositive(magnitude(x) * Floats::all(-1.44269504f));
    const Floats one = Floats::all(1.0f);
    const Floats top = select(less(x, Floats::all(0.0f)), e, one);
    return x * top / (one + e);
}

// Sum of squares of n floats, n a multiple of 16.
inline float sum_of_squares(const float* x, int n) {
    Floats sum = Floats::all(0.0f);
    for (int i = 0; i < n; i += kLanes) {
        const Floats v = Floats::load(x + i);
        sum = fused(v, v, sum);
    }
    return sum.sum();
}

// Largest magnitude of n floats, n a multiple of 16; NaN if any of them is NaN or infinite.
inline float largest_magnitude(const float* x, int n) {
    Floats largest = Floats::all(0.0f);
    Mask bad;
    for (int i = 0; i < n; i += kLanes) {
        const Floats v = Floats::load(x + i);
        bad = bad | not_finite(v);
        largest = max(largest, magnitude(v));
    }
    return bad.any() ? NAN : largest.max();
}

// q = round(x * inverse_scale) in [-127, 127] for n floats, n a multiple of 16; returns the sum of q,
// wrapped where the floats are no numbers.
inline int32_t quantize(const float* x, int n, float inverse_scale, int8_t* q) {
    const Floats inverse = Floats::all(inverse_scale);
    Ints sum = Ints::all(0);
    for (int i = 0; i < n; i += kLanes) {
        const Ints whole = to_ints(Floats::load(x + i) * inverse);
        sum = sum + whole;
        store_bytes(whole, q + i);
    }
    return sum.sum();
}

// What takes away the kOffset of bytes that are multiplied by others with this sum.
inline int32_t without_offset(int32_t sum) { return int32_t(uint32_t(sum) * uint32_t(-kOffset)); }

}  // namespace tickertape
