// Products of a tile of rows with a panel of weights, by AVX2.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "activations.h"
#include "simd.h"
#include "weights.h"

namespace tickertape {

constexpr int kFewRows = kTileRows;   // 4-bit weights are read as such by any batch
constexpr int kMostRows = kTileRows;  // as many as the registers hold sums for

// out[0 .. kLanes) += sum * scale, or = where it is the first.
inline void add_scaled(Ints sum, float scale, bool first, float* out) {
    const Floats old = first ? Floats::all(0.0f) : Floats::load(out);
    fused(to_floats(sum), Floats::all(scale), old).store(out);
}

// `Rows` rows of activations times one panel, scaled by the activations' scales only: out [Rows][kPanel].
template <int Rows>
inline void multiply_tile(const uint8_t* panel, const int8_t* q, const float* scales,
                          const int32_t*, int inputs, Ahead ahead, float* out) {
    // So many vectors of outputs at a time as the registers hold sums for.
    constexpr int kVectors = Rows == 1 ? 4 : Rows <= 3 ? 2 : 1;
    for (int column = 0; column < kPanel; column += kVectors * kLanes)
        for (int g = 0; g < inputs / kGroup; ++g) {
            Ints sum[Rows][kVectors];
#pragma GCC unroll 6
            for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v) sum[m][v] = Ints::all(0);
            const uint8_t* w = panel + (size_t(g) * kGroup * kPanel + column * 4);
            const int8_t* x = q + g * kGroup * kTileRows;
            for (int k = 0; k < kGroup; k += 4) {
                Left left[kVectors];
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v)
                    left[v] = Left::load(w + k * kPanel + v * kLanes * 4);
#pragma GCC unroll 6
                for (int m = 0; m < Rows; ++m) {
                    const Right right = Right::all(x + m * kGroup + k);
#pragma GCC unroll 4
                    for (int v = 0; v < kVectors; ++v) add_products(sum[m][v], left[v], right);
                }
            }
            if (column == 0) ahead.fetch(kGroup / 4);
#pragma GCC unroll 6
            for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 4
                for (int v = 0; v < kVectors; ++v)
                    add_scaled(sum[m][v], scales[g * kTileRows + m], g == 0,
                               out + m * kPanel + column + v * kLanes);
        }
}

// sum += products of pairs of bytes, in 16 bits.
//
// Not the intrinsics: GCC 12 computes all products of a loop first, and keeps them on the stack.
inline void add_pairs(__m256i& sum, __m256i unsigned_bytes, __m256i signed_bytes) {
    __m256i pairs;
    asm("vpmaddubsw %2, %3, %1\n\tvpaddw %1, %0, %0"
        : "+x"(sum), "=&x"(pairs)
        : "x"(signed_bytes), "x"(unsigned_bytes));
}

// Products of half a group with 4-bit weights: in 16 bits, which the sum of its eight pairs never exceeds
// (16 * 15 * 127 = 30,480).
template <int Rows>
inline void multiply_four_bits(const uint8_t* nibbles, const int8_t* x, __m256i (&sum)[Rows][2]) {
    const __m256i low = _mm256_set1_epi8(15);
#pragma GCC unroll 6
    for (int m = 0; m < Rows; ++m) sum[m][0] = sum[m][1] = _mm256_setzero_si256();
#pragma GCC unroll 1
    for (int k = 0; k < kFourGroup; k += 4, nibbles += 32, x += 4) {
        const __m256i both = _mm256_load_si256(reinterpret_cast<const __m256i*>(nibbles));
        const __m256i w[2] = {_mm256_and_si256(both, low),
                              _mm256_and_si256(_mm256_srli_epi16(both, 4), low)};
#pragma GCC unroll 6
        for (int m = 0; m < Rows; ++m) {
            const Right right = Right::all(x + m * kGroup);
            add_pairs(sum[m][0], w[0], right.v);
            add_pairs(sum[m][1], w[1], right.v);
        }
    }
}

// Sixteen-bit factors of one half of a group, twice in each lane: the first or second of its two.
inline __m256i factors(const uint8_t* pairs, int half) {
    const __m256i order = half ? _mm256_setr_epi64x(0x0706070603020302, 0x0f0e0f0e0b0a0b0a,
                                                    0x0706070603020302, 0x0f0e0f0e0b0a0b0a)
                               : _mm256_setr_epi64x(0x0504050401000100, 0x0d0c0d0c09080908,
                                                    0x0504050401000100, 0x0d0c0d0c09080908);
    return _mm256_shuffle_epi8(Ints::load(pairs).v, order);
}

// As `multiply_tile`, for a panel in 4 bits.
template <int Rows>
inline void multiply_tile_four_bits(const uint8_t* panel, const int8_t* q, const float* scales,
                                    const int32_t* starts, int inputs, Ahead ahead,
                                    float* out) {
    for (int column = 0; column < kPanel; column += 2 * kLanes)
        for (int g = 0; g < inputs / kGroup; ++g, panel += FourBits::kPieceBytes) {
            Ints total[Rows][2];
#pragma GCC unroll 2
            for (int v = 0; v < 2; ++v) {
                const __m256i b = Ints::load(panel + FourBits::kFactorBytes / 2 + v * 32).v;
#pragma GCC unroll 6
                for (int m = 0; m < Rows; ++m)
                    total[m][v].v = _mm256_madd_epi16(b, _mm256_set1_epi32(starts[g * kTileRows + m]));
            }
#pragma GCC unroll 2
            for (int part = 0; part < 2; ++part) {
                __m256i sum[Rows][2];
                multiply_four_bits<Rows>(panel + FourBits::kFactorBytes + part * kFourGroup * 8,
                                         q + g * kGroup * kTileRows + part * kFourGroup, sum);
#pragma GCC unroll 2
                for (int v = 0; v < 2; ++v) {
                    const __m256i a = factors(panel + v * 32, part);
#pragma GCC unroll 6
                    for (int m = 0; m < Rows; ++m)
                        total[m][v].v =
                            _mm256_add_epi32(total[m][v].v, _mm256_madd_epi16(sum[m][v], a));
                }
            }
            ahead.fetch(kGroup / 8);  // twice, once for each half of the panel
#pragma GCC unroll 6
            for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 2
                for (int v = 0; v < 2; ++v)
                    add_scaled(total[m][v], scales[g * kTileRows + m], g == 0,
                               out + m * kPanel + column + v * kLanes);
        }
}

}  // namespace tickertape
