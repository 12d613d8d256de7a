// Vectors of sixteen 32-bit lanes, and the products of bytes that AVX-512 VNNI has.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>

namespace tickertape {

constexpr char kInstructions[] = "AVX-512 VNNI";
constexpr int kLanes = 16;

// What is added to signed bytes to store them: the instruction's left side is unsigned.
constexpr int kOffset = 128;

// Softmax weights of attention are whole numbers up to this.
constexpr int kWeightSteps = 255;

struct Mask {
    __mmask16 v = 0;

    // Lanes [from, to), which may lie outside of the vector.
    static Mask between(int from, int to) {
        from = from < 0 ? 0 : from > kLanes ? kLanes : from;
        to = to < from ? from : to > kLanes ? kLanes : to;
        return {__mmask16(((1u << to) - 1) & ~((1u << from) - 1))};
    }
    bool any() const { return v != 0; }
    bool all() const { return v == 0xffff; }
    friend Mask operator|(Mask a, Mask b) { return {__mmask16(a.v | b.v)}; }
    friend Mask operator&(Mask a, Mask b) { return {__mmask16(a.v & b.v)}; }
};

struct Ints {
    __m512i v;

    static Ints all(int32_t x) { return {_mm512_set1_epi32(x)}; }
    static Ints count() {
        return {_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)};
    }
    static Ints load(const void* from) { return {_mm512_loadu_si512(from)}; }
    void store(void* to) const { _mm512_storeu_si512(to, v); }
    // Sums wrap: what a NaN is converted to would overflow.
    friend Ints operator+(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
    // Not the intrinsic that reduces: it adds plain ints, which must not overflow.
    int32_t sum() const {
        const __m256i half =
            _mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
        const __m128i quarter =
            _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
        const __m128i eighth = _mm_add_epi32(quarter, _mm_shuffle_epi32(quarter, 0x4e));
        return _mm_cvtsi128_si32(_mm_add_epi32(eighth, _mm_shuffle_epi32(eighth, 0xb1)));
    }
};

struct Floats {
    __m512 v;

    static Floats all(float x) { return {_mm512_set1_ps(x)}; }
    static Floats load(const float* from) { return {_mm512_loadu_ps(from)}; }
    void store(float* to) const { _mm512_storeu_ps(to, v); }
    void store(float* to, int count) const {
        _mm512_mask_storeu_ps(to, Mask::between(0, count).v, v);
    }
    friend Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
    friend Floats operator-(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
    friend Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
    friend Floats operator/(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
    float sum() const { return _mm512_reduce_add_ps(v); }
    float max() const { return _mm512_reduce_max_ps(v); }
    float min() const { return _mm512_reduce_min_ps(v); }
};

inline Floats fused(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Floats magnitude(Floats x) { return {_mm512_abs_ps(x.v)}; }
// Of a NaN and a number, the second.
inline Floats max(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Floats min(Floats a, Floats b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Floats nearest(Floats x) {
    return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// x * 2^whole, whole being whole and at most 0.
inline Floats scaled(Floats x, Floats whole) { return {_mm512_scalef_ps(x.v, whole.v)}; }

inline Ints to_ints(Floats x) { return {_mm512_cvtps_epi32(x.v)}; }
inline Floats to_floats(Ints x) { return {_mm512_cvtepi32_ps(x.v)}; }

// All false where a NaN is compared.
inline Mask less(Floats a, Floats b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
inline Mask is_nan(Floats x) { return {_mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q)}; }
inline Mask not_finite(Floats x) { return {_mm512_fpclass_ps_mask(x.v, 0x99)}; }  // NaNs, ±inf

inline Floats select(Mask mask, Floats yes, Floats no) {
    return {_mm512_mask_mov_ps(no.v, mask.v, yes.v)};
}
inline Ints select(Mask mask, Ints yes, Ints no) {
    return {_mm512_mask_mov_epi32(no.v, mask.v, yes.v)};
}

// Stored as bytes, saturating.
inline void store_bytes(Ints x, int8_t* to) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtsepi32_epi8(x.v));
}

// Four vectors of 0..255 -> 64 bytes; element 4 l + k of vector i goes to byte 16 l + 4 i + k.
inline void store_interleaved(const Ints (&x)[4], uint8_t* to) {
    _mm512_storeu_si512(to, _mm512_packus_epi16(_mm512_packs_epi32(x[0].v, x[1].v),
                                                _mm512_packs_epi32(x[2].v, x[3].v)));
}

// Four bytes for each lane, on the left of many products: offset signed ones, ready for them.
struct Left {
    __m512i v;

    static Left load(const uint8_t* from) { return {_mm512_loadu_si512(from)}; }
};

// Signed bytes, on the right: the same four for every lane, or four for each.
struct Right {
    __m512i v;

    static Right load(const int8_t* from) { return {_mm512_loadu_si512(from)}; }
    static Right all(const void* four) {
        int32_t x;
        __builtin_memcpy(&x, four, 4);
        return {_mm512_set1_epi32(x)};
    }
};

// sum += four products of bytes, in each lane.
//
// Not the intrinsic: with it GCC 12 keeps copying the sums between registers and the stack.
inline void add_unsigned_products(__m512i& sum, __m512i unsigned_bytes, __m512i signed_bytes) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_bytes), "v"(signed_bytes));
}

// What is on the left counts with kOffset added.
inline void add_products(Ints& sum, Left left, Right right) {
    add_unsigned_products(sum.v, left.v, right.v);
}

// Softmax weights, up to kWeightSteps, times values.
inline void add_weighted(Ints& sum, Right weights, Right values) {
    add_unsigned_products(sum.v, weights.v, values.v);
}

}  // namespace tickertape
