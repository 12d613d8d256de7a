// The two products of attention for up to 16 queries, by the tile registers of AMX.
#pragma once

#include <cstdint>
#include <cstring>

#include "kv_cache.h"
#include "simd.h"
#include "softmax.h"
#include "tiles.h"

namespace tickertape {

// As VectorProducts, the same to the last bit, for heads of which `fits` is true.
class TileProducts {
  public:
    static constexpr int kMost = kTileSize;
    static constexpr int kMostHeadDim = 128;
    static bool fits(int head_dim) { return head_dim % 64 == 0 && head_dim <= kMostHeadDim; }

    explicit TileProducts(int count) : count_(count) {}
    int count() const { return count_; }

    void keys(Past past, int first, int last, const Query* queries, Scores& scores,
              Upcoming& upcoming) const {
        alignas(64) int8_t q[kMostHeadDim / 64][kTileSize][64] = {};
        const int parts = past.head_dim() / 64;
        for (int part = 0; part < parts; ++part)
            for (int i = 0; i < count_; ++i) std::memcpy(q[part][i], queries[i].q + part * 64, 64);
        load_tile<kQueries>(q[0], 64);
        load_tile<kMoreQueries>(q[1], 64);
        for (int block = first; block < last; ++block) {
            if (upcoming.cold && block + kAhead < last) past.prefetch_block(block + kAhead);
            upcoming.fetch_some(2 * (last - first) - (block - first));
            const uint8_t* keys = past.keys(block);
            clear_tile<kSums>();
            load_tile<kKeys>(keys, 4 * kBlock);
            multiply_signed_unsigned<kSums, kQueries, kKeys>();
            if (parts > 1) {
                load_tile<kKeys>(keys + 64 * kBlock, 4 * kBlock);
                multiply_signed_unsigned<kSums, kMoreQueries, kKeys>();
            }
            store_tile<kSums>(scores.of(0) + (block - first) * kBlock,
                              scores.stride() * int64_t{sizeof(float)});
        }
    }

    void values(Past past, int first, int last, const uint8_t (*weights)[kSpan],
                const float* units, const Query* queries, Upcoming& upcoming, int end) const {
        for (int block = first; block < last; ++block) upcoming.fetch_some(end - block);
        const int line = 4 * past.head_dim();
        alignas(64) int8_t values[kSpan * kMostHeadDim];
        gather(past, first, last, values);
        load_tile<kWeights>(weights, kSpan);
        for (int offset = 0; offset < past.head_dim(); offset += kTileSize) {
            alignas(64) int32_t sums[kTileSize][kTileSize];
            clear_tile<kSums>();
            load_tile<kValues>(values + offset * 4, line);
            multiply_unsigned_signed<kSums, kWeights, kValues>();
            store_tile<kSums>(sums, 64);
            for (int i = 0; i < count_; ++i) {
                float* out = queries[i].out + offset;
                fused(to_floats(Ints::load(sums[i])), Floats::all(units[i]), Floats::load(out))
                    .store(out);
            }
        }
    }

  private:
    enum { kSums, kQueries, kMoreQueries, kKeys, kWeights = kQueries, kValues = kKeys };

    // Values of one span in the order of its weights (`weigh`): four positions of each block, the next
    // four of each. What is missing has weights of 0.
    static void gather(Past past, int first, int last, int8_t* to) {
        const int line = 4 * past.head_dim();
        for (int block = first; block < last; ++block)
            for (int four = 0; four < kBlock / 4; ++four) {
                const int8_t* from = past.values(block) + four * line;
                int8_t* at = to + (four * kBlocksPerSpan + block - first) * line;
                for (int i = 0; i < line; i += 64) Ints::load(from + i).store(at + i);
            }
    }

    const int count_;
};

}  // namespace tickertape
