// Products of a tile of rows with a panel of weights, by AVX-512 VNNI.
//
// The instruction multiplies unsigned by signed bytes, so weights are stored as q + 128 and every
// integer sum begins at -128 * (sum of the activations of its group): nothing is approximated by that.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "activations.h"
#include "simd.h"
#include "weights.h"

namespace tickertape {

constexpr int kFewRows = 8;   // up to so many, reading the weights is what takes the time
constexpr int kMostRows = 12;  // as many as the registers hold sums for

// out[0 .. 16) += sum * scale, or = where it is the first.
inline void add_scaled(__m512i sum, float scale, bool first, float* out) {
    const __m512 old = first ? _mm512_setzero_ps() : _mm512_load_ps(out);
    _mm512_store_ps(out, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(scale), old));
}

// `Rows` rows of activations times one panel, scaled by the activations' scales only: out [Rows][kPanel].
template <int Rows>
inline void multiply_tile(const uint8_t* panel, const int8_t* q, const float* scales,
                          const int32_t* starts, int inputs, Ahead ahead, float* out) {
    const int groups = inputs / kGroup;
    for (int g = 0; g < groups; ++g) {
        __m512i sum[Rows][2];
#pragma GCC unroll 12
        for (int m = 0; m < Rows; ++m)
            sum[m][0] = sum[m][1] = _mm512_set1_epi32(starts[g * kTileRows + m]);
        const uint8_t* w = panel + size_t(g) * kGroup * kPanel;
        const int8_t* a = q + g * kGroup * kTileRows;
        for (int k = 0; k < kGroup; k += 4) {
            const __m512i w0 = _mm512_load_si512(w + k * kPanel);
            const __m512i w1 = _mm512_load_si512(w + k * kPanel + 64);
            ahead.fetch();
#pragma GCC unroll 12
            for (int m = 0; m < Rows; ++m) {
                int32_t four;
                std::memcpy(&four, a + m * kGroup + k, 4);
                const __m512i x = _mm512_set1_epi32(four);
                add_unsigned_products(sum[m][0], w0, x);
                add_unsigned_products(sum[m][1], w1, x);
            }
        }
#pragma GCC unroll 12
        for (int m = 0; m < Rows; ++m) {
            add_scaled(sum[m][0], scales[g * kTileRows + m], g == 0, out + m * kPanel);
            add_scaled(sum[m][1], scales[g * kTileRows + m], g == 0, out + m * kPanel + 16);
        }
    }
}

// A vector of nibbles -> two of bytes: u = (a * q + b) >> 4, a and b in 16-bit lanes.
inline void expand(__m512i nibbles, __m512i a, __m512i b, __m512i& first, __m512i& second) {
    const __m512i low = _mm512_set1_epi16(0x000f), high_byte = _mm512_set1_epi16(int16_t(0xff00));
    const auto weight = [&](__m512i q) { return _mm512_add_epi16(_mm512_mullo_epi16(q, a), b); };
    const auto pair = [&](__m512i even, __m512i odd) {
        // even >> 4, or (odd << 4) in the high byte
        return _mm512_ternarylogic_epi32(_mm512_srli_epi16(even, 4), _mm512_slli_epi16(odd, 4),
                                         high_byte, 0xf8);
    };
    first = pair(weight(_mm512_and_si512(nibbles, low)),
                 weight(_mm512_and_si512(_mm512_srli_epi16(nibbles, 4), low)));
    second = pair(weight(_mm512_and_si512(_mm512_srli_epi16(nibbles, 8), low)),
                  weight(_mm512_srli_epi16(nibbles, 12)));
}

// As `multiply_tile`, reading the panel's four-bit form; the same result to the last bit.
template <int Rows>
inline void multiply_tile_four_bits(const uint8_t* panel, const int8_t* q, const float* scales,
                                    const int32_t* starts, int inputs, Ahead ahead,
                                    float* out) {
    const int groups = inputs / kGroup;
    const __m512i low_words = _mm512_set1_epi32(0x01000100), high_words = _mm512_set1_epi32(0x03020302);
    const __m512i lanes = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
    const __m512i a_bytes = _mm512_add_epi8(low_words, lanes);
    const __m512i b_bytes = _mm512_add_epi8(high_words, lanes);
    for (int g = 0; g < groups; ++g) {
        __m512i sum[Rows][2];
#pragma GCC unroll 8
        for (int m = 0; m < Rows; ++m)
            sum[m][0] = sum[m][1] = _mm512_set1_epi32(starts[g * kTileRows + m]);
        for (int part = 0; part < kGroup / kFourGroup; ++part) {
            const int8_t* x = q + g * kGroup * kTileRows + part * kFourGroup;
#pragma GCC unroll 2
            for (int half = 0; half < 2; ++half, panel += kFourVectors * 64) {
                const __m512i both = _mm512_load_si512(panel);
                const __m512i a = _mm512_shuffle_epi8(both, a_bytes);
                const __m512i b = _mm512_shuffle_epi8(both, b_bytes);
#pragma GCC unroll 4
                for (int v = 0; v < kFourVectors - 1; ++v) {
                    ahead.fetch();
                    __m512i w[2];
                    expand(_mm512_load_si512(panel + 64 + v * 64), a, b, w[0], w[1]);
#pragma GCC unroll 8
                    for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 2
                        for (int i = 0; i < 2; ++i) {
                            int32_t four;
                            std::memcpy(&four, x + m * kGroup + (2 * v + i) * 4, 4);
                            add_unsigned_products(sum[m][half], w[i], _mm512_set1_epi32(four));
                        }
                }
            }
        }
#pragma GCC unroll 8
        for (int m = 0; m < Rows; ++m) {
            add_scaled(sum[m][0], scales[g * kTileRows + m], g == 0, out + m * kPanel);
            add_scaled(sum[m][1], scales[g * kTileRows + m], g == 0, out + m * kPanel + 16);
        }
    }
}

}  // namespace tickertape
