// y = x W^T with 8- or 4-bit weights and 8-bit activations, exact sums in 32-bit integers.
//
//     y[m][n] = ws[n] * sum over groups g of as[m][g] * (sum over k in g of qa[m][k] * qw[n][k])
#pragma once

#include <array>
#include <cstdint>
#include <utility>

#include "activations.h"
#include "simd.h"
#include "tiles.h"
#include "weights.h"

#ifdef TICKERTAPE_AVX512
#include "products_avx512.h"
#else
#include "products_avx2.h"
#endif
#ifdef TICKERTAPE_AMX
#include "products_amx.h"
#endif

namespace tickertape {

using MultiplyTile = void (*)(const uint8_t* panel, const int8_t* q, const float* scales,
                              const int32_t* starts, int inputs, Ahead ahead,
                              float* out);

template <int... Rows>
constexpr auto tiles(std::integer_sequence<int, Rows...>) {
    return std::array<MultiplyTile, sizeof...(Rows)>{multiply_tile<Rows + 1>...};
}

template <int... Rows>
constexpr auto four_bit_tiles(std::integer_sequence<int, Rows...>) {
    return std::array<MultiplyTile, sizeof...(Rows)>{multiply_tile_four_bits<Rows + 1>...};
}

// The most rows of a tile in a batch of so many, with the tile registers of AMX or without.
inline int highest_tile(int rows, bool has_tiles) {
    return has_tiles && rows > kFewRows ? kTileRows : kMostRows;
}

inline constexpr auto kTiles = tiles(std::make_integer_sequence<int, kMostRows>());
inline constexpr auto kFourBitTiles = four_bit_tiles(std::make_integer_sequence<int, kFewRows>());

// Whether a product with so many rows reads the four-bit form.
inline bool reads_four_bits(const Weights& weights, int rows) {
    return weights.has_four_bits() && (kFourBitsAlone || rows <= kFewRows);
}

inline MultiplyTile tile_product(bool four_bits, const Tiling& tiling, int height) {
    if (four_bits) return kFourBitTiles[height - 1];
#ifdef TICKERTAPE_AMX
    if (tiling.highest() > kMostRows) return multiply_tile_amx;
#endif
    return kTiles[height - 1];
}

// The product of one panel with every `step`th of the tiles [first, last); `use(m, y)` takes each row's
// kPanel results, which are still to be multiplied by the weights' scales. `next` is the panel that
// is wanted after it.
template <typename Use>
void multiply_panel(const Weights& weights, int panel, int next, const Activations& x,
                    const Tiling& tiling, int first, int last, int step, Use&& use) {
    alignas(64) float out[kTileRows * kPanel];
    const int inputs = weights.inputs();
    const bool four = reads_four_bits(weights, tiling.rows());
    const auto at = [&](int index) {
        return four ? weights.four_bit_panel(index) : weights.panel(index);
    };
    const int passes = (last - first + step - 1) / step;
    const int steps = inputs / 4;  // in which `stride` bytes are fetched
    const size_t bytes = four ? FourBits::panel_bytes(inputs) : size_t(kPanel) * inputs;
    const int stride = int(bytes / steps) / passes;
    const uint8_t* ahead = at(next);
    for (int tile = first; tile < last; tile += step, ahead += steps * stride) {
        const int from = tiling.first(tile), height = tiling.height(tile);
        if (height == 0) continue;
        tile_product(four, tiling, height)(at(panel), x.tile(tile), x.scales(tile), x.starts(tile),
                                           inputs, Ahead{ahead, stride}, out);
        for (int m = 0; m < height; ++m) use(from + m, static_cast<const float*>(out + m * kPanel));
    }
}

}  // namespace tickertape
