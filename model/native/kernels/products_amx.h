// Products of 16 rows with a panel of weights, by AMX.
#pragma once

#include <array>
#include <cstdint>

#include "activations.h"
#include "simd.h"
#include "tiles.h"
#include "weights.h"

namespace tickertape {

static_assert(kGroup == 64 && kTileRows == kTileSize);

// As `multiply_tile`, always 16 rows; the same result to the last bit.
inline void multiply_tile_amx(const uint8_t* panel, const int8_t* q, const float* scales,
                              const int32_t*, int inputs, Ahead ahead, float* out) {
    constexpr int kSums = 0, kRows = 1, kWeights = 2, kMinusOffset = 3;
    alignas(64) static constexpr auto kMinus = [] {
        std::array<int8_t, 64> bytes{};
        bytes.fill(-kOffset);
        return bytes;
    }();
    const int groups = inputs / kGroup;
    alignas(64) int32_t sums[2][kTileSize][kTileSize];  // of this group, and of the one before
    load_tile<kMinusOffset>(kMinus.data(), 0);
    for (int half = 0; half < 2; ++half) {
        const auto multiply = [&](int g) {
            load_tile<kRows>(q + g * kGroup * kTileRows, kGroup);
            load_tile<kWeights>(panel + size_t(g) * kGroup * kPanel + half * 64, kPanel * 4);
            clear_tile<kSums>();
            multiply_signed_signed<kSums, kRows, kMinusOffset>();
            multiply_signed_unsigned<kSums, kRows, kWeights>();
            store_tile<kSums>(sums[g % 2], 64);
        };
        __m512 total[kTileSize];
#pragma GCC unroll 16
        for (int m = 0; m < kTileSize; ++m) total[m] = _mm512_setzero_ps();
        multiply(0);
        for (int g = 0; g < groups; ++g) {
            if (g + 1 < groups) multiply(g + 1);
            ahead.fetch(kGroup / 8);
#pragma GCC unroll 16
            for (int m = 0; m < kTileSize; ++m)
                total[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(sums[g % 2][m])),
                                           _mm512_set1_ps(scales[g * kTileRows + m]), total[m]);
        }
#pragma GCC unroll 16
        for (int m = 0; m < kTileSize; ++m)
            _mm512_store_ps(out + m * kPanel + half * kTileSize, total[m]);
    }
}

}  // namespace tickertape
