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

// Rows that are multiplied together: as many as the registers hold sums for.
constexpr int kTileRows = kLanes == 16 ? 12 : 6;

// How the rows of a batch are cut into tiles of at most kTileRows, of nearly equal heights: a low tile
// would leave the multipliers idle.
class Tiling {
  public:
    Tiling() = default;

    // `multiple`: of which the number of tiles should be, so that they can be shared out evenly.
    Tiling(int rows, int multiple) : rows_(rows), tile_of_(rows) {
        count_ = (rows + kTileRows - 1) / kTileRows;
        count_ = (count_ + multiple - 1) / multiple * multiple;
        for (int tile = 0; tile < count_; ++tile)
            for (int m = first(tile); m < first(tile + 1); ++m) tile_of_[m] = tile;
    }

    int rows() const { return rows_; }
    int count() const { return count_; }
    int first(int tile) const { return int(int64_t(rows_) * tile / count_); }
    int height(int tile) const { return first(tile + 1) - first(tile); }
    int tile_of(int m) const { return tile_of_[m]; }

  private:
    int rows_ = 0, count_ = 0;
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

// Quantized rows, in tiles that are multiplied together: [inputs / 4][kTileRows][4].
class Activations {
  public:
    Activations() = default;

    // For at most `rows` rows of at most `inputs` floats, in at most `tiles` tiles.
    Activations(int rows, int tiles, int inputs)
        : inputs_(inputs),
          q_(size_t(tiles) * kTileRows * inputs),
          scales_(size_t(rows) * groups()),
          starts_(size_t(rows) * groups()) {}

    int groups() const { return inputs_ / kGroup; }  // from one row's scales to the next's

    // Row m of a batch whose rows have `inputs` floats.
    void set(const Tiling& tiling, int m, const float* x, int inputs) {
        const int index = tiling.tile_of(m);
        int8_t* to = q_.data() + tile_at(index) + (m - tiling.first(index)) * 4;
        for (int g = 0; g < inputs / kGroup; ++g) {
            alignas(64) int8_t q[kGroup];
            const float largest = largest_magnitude(x + g * kGroup, kGroup);
            starts_[size_t(m) * groups() + g] =
                quantize_group(x + g * kGroup, largest > 0 ? 127 / largest : 0, q);
            scales_[size_t(m) * groups() + g] = largest / 127;
            for (int k = 0; k < kGroup; k += 4, to += kTileRows * 4) std::memcpy(to, q + k, 4);
        }
    }

    const int8_t* tile(int index) const { return q_.data() + tile_at(index); }
    const float* scales(int m) const { return scales_.data() + size_t(m) * groups(); }
    const int32_t* starts(int m) const { return starts_.data() + size_t(m) * groups(); }

  private:
    // The same whatever a row's width: threads that are a phase apart share nothing.
    size_t tile_at(int index) const { return size_t(index) * kTileRows * inputs_; }

    int inputs_ = 0;
    Buffer<int8_t> q_;
    Buffer<float> scales_;
    Buffer<int32_t> starts_;
};

}  // namespace tickertape
