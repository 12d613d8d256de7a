// Rows of activations in 8 bits, with one scale for every group of kGroup inputs of a row: an outlier
// then spoils its own group only.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "memory.h"
#include "simd.h"

namespace tickertape {

constexpr int kGroup = 64;  // inputs that share one activation scale

// Rows that lie together, and the most that are multiplied together.
constexpr int kTileRows = kLanes == 16 ? 16 : 6;

// How the rows of a batch are cut into tiles of nearly equal heights: a low tile would leave the
// multipliers idle.
class Tiling {
  public:
    Tiling() = default;

    // `highest`: the most rows of a tile, at most kTileRows. `multiple`: of which the number of tiles
    // should be, so that they can be shared out evenly.
    Tiling(int rows, int highest, int multiple)
        : rows_(rows), highest_(highest), tile_of_(rows) {
        count_ = (rows + highest - 1) / highest;
        count_ = (count_ + multiple - 1) / multiple * multiple;
        for (int tile = 0; tile < count_; ++tile)
            for (int m = first(tile); m < first(tile + 1); ++m) tile_of_[m] = tile;
    }

    int rows() const { return rows_; }
    int highest() const { return highest_; }
    int count() const { return count_; }
    int first(int tile) const { return int(int64_t(rows_) * tile / count_); }
    int height(int tile) const { return first(tile + 1) - first(tile); }
    int tile_of(int m) const { return tile_of_[m]; }

  private:
    int rows_ = 0, highest_ = 0, count_ = 0;
    std::vector<int> tile_of_;
};

// kGroup floats -> q; returns what the integer sums of a product need to know of the group: what
// takes away the offset of 8-bit weights, or where there is none, the sums of its two halves in
// 16 bits each, which the starts of 4-bit weights are multiplied by.
inline int32_t quantize_group(const float* x, float inverse_scale, int8_t* q) {
    if constexpr (kOffset) return without_offset(quantize(x, kGroup, inverse_scale, q));
    const int32_t first = quantize(x, kGroup / 2, inverse_scale, q);
    const int32_t second = quantize(x + kGroup / 2, kGroup / 2, inverse_scale, q + kGroup / 2);
    return int32_t((uint32_t(first) & 0xffff) | uint32_t(second) << 16);
}

// Quantized rows, in tiles that are multiplied together: [groups][kTileRows][kGroup], and for each tile
// [groups][kTileRows] scales and what `quantize_group` says.
class Activations {
  public:
    Activations() = default;

    // For rows of at most `inputs` floats, in at most `tiles` tiles.
    Activations(int tiles, int inputs)
        : inputs_(inputs),
          q_(size_t(tiles) * kTileRows * inputs),
          scales_(size_t(tiles) * factors_of_tile()),
          starts_(size_t(tiles) * factors_of_tile()) {}

    // Row m of a batch whose rows have `inputs` floats.
    void set(const Tiling& tiling, int m, const float* x, int inputs) {
        const int index = tiling.tile_of(m);
        const int row = m - tiling.first(index);
        int8_t* q = q_.data() + tile_at(index) + row * kGroup;
        const size_t factors = index * factors_of_tile() + row;
        for (int g = 0; g < inputs / kGroup; ++g) {
            const float largest = largest_magnitude(x + g * kGroup, kGroup);
            const size_t at = factors + g * kTileRows;
            starts_[at] = quantize_group(x + g * kGroup, largest > 0 ? 127 / largest : 0,
                                         q + g * kGroup * kTileRows);
            scales_[at] = largest / 127;
        }
    }

    const int8_t* tile(int index) const { return q_.data() + tile_at(index); }
    const float* scales(int index) const { return scales_.data() + index * factors_of_tile(); }
    const int32_t* starts(int index) const { return starts_.data() + index * factors_of_tile(); }

  private:
    // The same whatever a row's width: threads that are a phase apart share nothing.
    size_t tile_at(int index) const { return size_t(index) * kTileRows * inputs_; }
    size_t factors_of_tile() const { return size_t(inputs_ / kGroup) * kTileRows; }

    int inputs_ = 0;
    Buffer<int8_t> q_;
    Buffer<float> scales_;
    Buffer<int32_t> starts_;
};

}  // namespace tickertape
