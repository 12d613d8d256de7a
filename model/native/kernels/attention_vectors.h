// The two products of attention for a few queries, by vectors.
//
// The loops are functions of their own: inlined together they need more registers than there are, and
// GCC 12 keeps their sums on the stack.
#pragma once

#include <cstdint>

#include "kv_cache.h"
#include "simd.h"
#include "softmax.h"

namespace tickertape {

constexpr int kFewQueries = 6;  // as many as the registers hold sums for
constexpr int kValueVectors = kLanes == 16 ? 4 : 2;  // of a head, that are added up together

// Products of `Count` queries with the keys of blocks [first, last): integers, in place of the scores.
template <int Count>
[[gnu::noinline]] void multiply_keys(Past past, int first, int last, const Query* queries,
                                     Scores& scores, Upcoming& upcoming) {
    const int head_dim = past.head_dim();
    const int8_t* q[Count];
    float* to[Count];
    for (int i = 0; i < Count; ++i) {
        q[i] = queries[i].q;
        to[i] = scores.of(i);
    }
    for (int block = first; block < last; ++block) {
        const uint8_t* keys = past.keys(block);
        if (upcoming.cold && block + kAhead < last) past.prefetch_block(block + kAhead);
        // A line with every step: many at once would hold up the loads behind them.
        const uint8_t* ahead = upcoming.due(2 * (last - first) - (block - first));
        if (!ahead) ahead = keys;
        prefetch(ahead + head_dim * kBlock);
        for (int slot = 0; slot < kBlock; slot += kLanes) {
            Ints sum[Count];
#pragma GCC unroll 6
            for (int i = 0; i < Count; ++i) sum[i] = Ints::all(0);
            for (int d = 0; d < head_dim; d += 4) {
                const Left k = Left::load(keys + d * kBlock + slot * 4);
                if (slot == 0) prefetch(ahead + d * kBlock);
#pragma GCC unroll 6
                for (int i = 0; i < Count; ++i) add_products(sum[i], k, Right::all(q[i] + d));
            }
#pragma GCC unroll 6
            for (int i = 0; i < Count; ++i)
                sum[i].store(to[i] + (block - first) * kBlock + slot);
        }
    }
}

// out[0 .. kLanes * Vectors) += weights . values over one span, for `Count` queries.
template <int Count, int Vectors>
[[gnu::noinline]] void add_values(Past past, int first, int last, const uint8_t (*weights)[kSpan],
                                  const float* units, int offset, const Query* queries,
                                  Upcoming& upcoming, int end) {
    const int head_dim = past.head_dim();
    Ints sum[Count][Vectors];
#pragma GCC unroll 6
    for (int i = 0; i < Count; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) sum[i][v] = Ints::all(0);
    for (int block = first; block < last; ++block) {
        const int8_t* values = past.values(block) + offset * 4;
        const uint8_t* ahead = offset ? nullptr : upcoming.due(end - block);
        if (!ahead) ahead = reinterpret_cast<const uint8_t*>(values);
        prefetch(ahead + head_dim * kBlock);
#pragma GCC unroll 4
        for (int j = 0; j < kBlock; j += 4) {
            const int8_t* four_positions = values + j * head_dim;
            const int from = at((block - first) * kBlock + j);
            prefetch(ahead + j * head_dim, size_t(4) * head_dim);
            Right value[Vectors];
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v)
                value[v] = Right::load(four_positions + v * kLanes * 4);
#pragma GCC unroll 6
            for (int i = 0; i < Count; ++i) {
                const Right weight = Right::all(weights[i] + from);
#pragma GCC unroll 4
                for (int v = 0; v < Vectors; ++v) add_weighted(sum[i][v], weight, value[v]);
            }
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < Count; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
            float* out = queries[i].out + offset + v * kLanes;
            fused(to_floats(sum[i][v]), Floats::all(units[i]), Floats::load(out)).store(out);
        }
}

template <int Count>
struct VectorProducts {
    static constexpr int kMost = Count;
    static constexpr int count() { return Count; }

    // Products of the queries with keys of blocks [first, last), in place of their scores; half of what is
    // upcoming is fetched.
    void keys(Past past, int first, int last, const Query* queries, Scores& scores,
              Upcoming& upcoming) const {
        multiply_keys<Count>(past, first, last, queries, scores, upcoming);
    }

    // Each query's out += unit * (weights . values) over one span, blocks [first, last) of all up to `end`,
    // with which everything upcoming is fetched.
    void values(Past past, int first, int last, const uint8_t (*weights)[kSpan],
                const float* units, const Query* queries, Upcoming& upcoming, int end) const {
        int offset = 0;
        for (; offset + kValueVectors * kLanes <= past.head_dim(); offset += kValueVectors * kLanes)
            add_values<Count, kValueVectors>(past, first, last, weights, units, offset, queries,
                                             upcoming, end);
        for (; offset < past.head_dim(); offset += kLanes)
            add_values<Count, 1>(past, first, last, weights, units, offset, queries, upcoming,
                                 end);
    }
};

}  // namespace tickertape
