// Vectors of eight 32-bit lanes, and products of bytes without an instruction for four of them.
//
// AVX2 multiplies unsigned by signed bytes and adds pairs in 16 bits, where they saturate. So the
// unsigned side stays below 128: magnitudes, with their signs moved to the other side.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>

namespace tickertape {

constexpr char kInstructions[] = "AVX2";
constexpr int kLanes = 8;

// What is added to signed bytes to store them.
constexpr int kOffset = 0;

// Softmax weights of attention are whole numbers up to this.
constexpr int kWeightSteps = 127;

struct Mask {
    __m256 v = _mm256_setzero_ps();

    // Lanes [from, to), which may lie outside of the vector.
    static Mask between(int from, int to) {
        const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        const __m256i before = _mm256_cmpgt_epi32(_mm256_set1_epi32(from), lane);
        const __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32(to), lane);
        return {_mm256_castsi256_ps(_mm256_andnot_si256(before, below))};
    }
    bool any() const { return _mm256_movemask_ps(v) != 0; }
    bool all() const { return _mm256_movemask_ps(v) == 0xff; }
    friend Mask operator|(Mask a, Mask b) { return {_mm256_or_ps(a.v, b.v)}; }
    friend Mask operator&(Mask a, Mask b) { return {_mm256_and_ps(a.v, b.v)}; }
};

struct Ints {
    __m256i v;

    static Ints all(int32_t x) { return {_mm256_set1_epi32(x)}; }
    static Ints count() { return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)}; }
    static Ints load(const void* from) {
        return {_mm256_loadu_si256(static_cast<const __m256i*>(from))};
    }
    void store(void* to) const { _mm256_storeu_si256(static_cast<__m256i*>(to), v); }
    // Sums wrap: what a NaN is converted to would overflow.
    friend Ints operator+(Ints a, Ints b) { return {_mm256_add_epi32(a.v, b.v)}; }
    int32_t sum() const {
        const __m128i half =
            _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
        const __m128i quarter = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
        return _mm_cvtsi128_si32(_mm_add_epi32(quarter, _mm_shuffle_epi32(quarter, 0xb1)));
    }
};

struct Floats {
    __m256 v;

    static Floats all(float x) { return {_mm256_set1_ps(x)}; }
    static Floats load(const float* from) { return {_mm256_loadu_ps(from)}; }
    void store(float* to) const { _mm256_storeu_ps(to, v); }
    void store(float* to, int count) const {
        if (count >= kLanes) return store(to);  // masked stores are slow
        _mm256_maskstore_ps(to, _mm256_castps_si256(Mask::between(0, count).v), v);
    }
    friend Floats operator+(Floats a, Floats b) { return {_mm256_add_ps(a.v, b.v)}; }
    friend Floats operator-(Floats a, Floats b) { return {_mm256_sub_ps(a.v, b.v)}; }
    friend Floats operator*(Floats a, Floats b) { return {_mm256_mul_ps(a.v, b.v)}; }
    friend Floats operator/(Floats a, Floats b) { return {_mm256_div_ps(a.v, b.v)}; }
    float sum() const {
        return reduced([](__m128 a, __m128 b) { return _mm_add_ps(a, b); });
    }
    float max() const {
        return reduced([](__m128 a, __m128 b) { return _mm_max_ps(a, b); });
    }
    float min() const {
        return reduced([](__m128 a, __m128 b) { return _mm_min_ps(a, b); });
    }

  private:
    template <typename Join>
    float reduced(Join join) const {
        const __m128 half = join(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        const __m128 quarter = join(half, _mm_movehl_ps(half, half));
        return _mm_cvtss_f32(join(quarter, _mm_movehdup_ps(quarter)));
    }
};

inline Floats fused(Floats a, Floats b, Floats c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Floats magnitude(Floats x) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), x.v)}; }
// Of a NaN and a number, the second.
inline Floats max(Floats a, Floats b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Floats min(Floats a, Floats b) { return {_mm256_min_ps(a.v, b.v)}; }
inline Floats nearest(Floats x) {
    return {_mm256_round_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// x * 2^whole, whole being whole and at most 0; 0 where 2^whole would be subnormal.
inline Floats scaled(Floats x, Floats whole) {
    const __m256i exponent =
        _mm256_add_epi32(_mm256_cvtps_epi32(whole.v), _mm256_set1_epi32(127));
    const __m256i power = _mm256_slli_epi32(
        _mm256_max_epi32(exponent, _mm256_setzero_si256()), 23);
    return {_mm256_mul_ps(x.v, _mm256_castsi256_ps(power))};
}

inline Ints to_ints(Floats x) { return {_mm256_cvtps_epi32(x.v)}; }
inline Floats to_floats(Ints x) { return {_mm256_cvtepi32_ps(x.v)}; }

// All false where a NaN is compared.
inline Mask less(Floats a, Floats b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
inline Mask is_nan(Floats x) { return {_mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q)}; }
inline Mask not_finite(Floats x) { return is_nan(x - x); }

inline Floats select(Mask mask, Floats yes, Floats no) {
    return {_mm256_blendv_ps(no.v, yes.v, mask.v)};
}
inline Ints select(Mask mask, Ints yes, Ints no) {
    return {_mm256_blendv_epi8(no.v, yes.v, _mm256_castps_si256(mask.v))};
}

// Stored as bytes, saturating.
inline void store_bytes(Ints x, int8_t* to) {
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(x.v),
                                          _mm256_extracti128_si256(x.v, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(words, words));
}

// Four vectors of 0..255 -> 32 bytes; element 4 l + k of vector i goes to byte 16 l + 4 i + k.
inline void store_interleaved(const Ints (&x)[4], uint8_t* to) {
    const __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(x[0].v, x[1].v),
                                              _mm256_packs_epi32(x[2].v, x[3].v));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bytes);
}

// Four bytes for each lane, on the left of many products: signed ones, ready for them.
struct Left {
    __m256i v, magnitude;

    static Left load(const uint8_t* from) {
        const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
        return {v, _mm256_abs_epi8(v)};
    }
};

// Signed bytes, on the right: the same four for every lane, or four for each.
struct Right {
    __m256i v;

    static Right load(const int8_t* from) {
        return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))};
    }
    static Right all(const void* four) {
        int32_t x;
        __builtin_memcpy(&x, four, 4);
        return {_mm256_set1_epi32(x)};
    }
};

// Pairs of 16-bit sums, added up in each lane.
inline __m256i widened(__m256i pairs) {
    return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

// sum += four products of bytes, in each lane. No byte on the left is -128.
inline void add_products(Ints& sum, Left left, Right right) {
    const __m256i pairs =
        _mm256_maddubs_epi16(left.magnitude, _mm256_sign_epi8(right.v, left.v));
    sum.v = _mm256_add_epi32(sum.v, widened(pairs));
}

// Softmax weights, up to kWeightSteps, times values.
inline void add_weighted(Ints& sum, Right weights, Right values) {
    sum.v = _mm256_add_epi32(sum.v, widened(_mm256_maddubs_epi16(weights.v, values.v)));
}

}  // namespace tickertape
