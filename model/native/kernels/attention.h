// Paged attention over an 8-bit KV cache.
//
//     out = sum over visible positions j of softmax(q . k_j / sqrt(d))_j v_j
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "attention_vectors.h"
#include "kv_cache.h"
#include "simd.h"
#include "softmax.h"
#include "tiles.h"
#ifdef TICKERTAPE_AMX
#include "attention_tiles.h"
#endif

namespace tickertape {

// Attention of queries of one sequence that share a KV head.
template <typename Products>
void attend(Products products, Past past, const Query* queries, Scores& scratch,
            Upcoming upcoming) {
    const int count = products.count();
    int begin = queries[0].begin, end = queries[0].end;
    for (int i = 1; i < count; ++i) {
        begin = std::min(begin, queries[i].begin);
        end = std::max(end, queries[i].end);
    }
    const int first = begin / kSpan * kBlocksPerSpan, last = (end + kBlock - 1) / kBlock;
    const int head_dim = past.head_dim();
    products.keys(past, first, last, queries, scratch, upcoming);
    const float* key_scales = scratch.key_scales(past, first, last);
    Floats total[Products::kMost];
    float top[Products::kMost];
    for (int i = 0; i < count; ++i) {
        top[i] = scale_scores(queries[i], key_scales, first * kBlock, last * kBlock, scratch.of(i));
        total[i] = Floats::all(0.0f);
        std::memset(queries[i].out, 0, head_dim * sizeof(float));
    }
    alignas(64) uint8_t weights[Products::kMost][kSpan];
    float units[Products::kMost];
    for (int span = first; span < last; span += kBlocksPerSpan) {
        const int stop = std::min(span + kBlocksPerSpan, last);
        Floats value_scales[kVectorsPerSpan];
        for (int i = 0; i < kVectorsPerSpan; ++i) {
            const int block = span + i * kLanes / kBlock;
            value_scales[i] =
                block < last ? Floats::load(past.value_scales(block) + i * kLanes % kBlock)
                             : Floats::all(0.0f);
        }
        for (int i = 0; i < count; ++i) {
            const Query& query = queries[i];
            const float* scores = scratch.of(i) + (span - first) * kBlock;
            if (query.begin <= span * kBlock && (span + kBlocksPerSpan) * kBlock <= query.end) {
                units[i] = weigh<true>(scores, top[i], value_scales, nullptr, total[i], weights[i]);
            } else {
                Mask seen[kVectorsPerSpan];
                for (int v = 0; v < kVectorsPerSpan; ++v)
                    seen[v] = visible(query, span * kBlock + v * kLanes);
                units[i] = weigh<false>(scores, top[i], value_scales, seen, total[i], weights[i]);
            }
        }
        products.values(past, span, stop, weights, units, queries, upcoming, last);
    }
    for (int i = 0; i < count; ++i) {
        const Floats inverse = Floats::all(1 / total[i].sum());
        for (int d = 0; d < head_dim; d += kLanes)
            (Floats::load(queries[i].out + d) * inverse).store(queries[i].out + d);
    }
}

// The most queries that are worth a task.
inline int most_queries(bool has_tiles, int head_dim) {
#ifdef TICKERTAPE_AMX
    if (has_tiles && TileProducts::fits(head_dim)) return TileProducts::kMost;
#endif
    return kFewQueries;
}

// At most `most_queries` of them.
inline void attend(Past past, int count, const Query* queries, Scores& scratch, Upcoming upcoming) {
    switch (count) {
        case 1: return attend(VectorProducts<1>(), past, queries, scratch, upcoming);
        case 2: return attend(VectorProducts<2>(), past, queries, scratch, upcoming);
        case 3: return attend(VectorProducts<3>(), past, queries, scratch, upcoming);
        case 4: return attend(VectorProducts<4>(), past, queries, scratch, upcoming);
        case 5: return attend(VectorProducts<5>(), past, queries, scratch, upcoming);
        case 6: return attend(VectorProducts<6>(), past, queries, scratch, upcoming);
    }
#ifdef TICKERTAPE_AMX
    attend(TileProducts(count), past, queries, scratch, upcoming);
#endif
}

}  // namespace tickertape
