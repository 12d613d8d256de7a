// From products of queries and keys to the weights of values.
//
// Weights are multiplied by their value's scale and rounded to kWeightSteps relative to the largest of kSpan
// positions. Spans begin at multiples of kSpan in the sequence, so a row's result does not depend
// on chunks or on the batch.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "kv_cache.h"
#include "memory.h"
#include "simd.h"

namespace tickertape {

constexpr int kBlocksPerSpan = 4;
constexpr int kSpan = kBlock * kBlocksPerSpan;
constexpr int kVectorsPerSpan = kSpan / kLanes;
constexpr int kMostQueries = 16;  // that read the same keys together

// One query head of one row: its quantized vector, and the positions [begin, end) that it may see.
struct Query {
    const int8_t* q;
    float scale;    // of q, times 1 / sqrt(d), times log2(e)
    int32_t start;  // what takes away the keys' kOffset
    int begin, end;
    float* out;     // head_dim floats
};

// Scratch of one thread: scores of kMostQueries queries over up to `positions` positions, and the scales
// of their keys.
class Scores {
  public:
    // A line more than needed: rows a power of two apart would share the sets of a cache.
    explicit Scores(int positions)
        : stride_((positions + kSpan - 1) / kSpan * kSpan + kLanes),
          scores_(size_t(kMostQueries) * stride_),
          key_scales_(stride_) {}
    float* of(int query) { return scores_.data() + size_t(query) * stride_; }
    int stride() const { return stride_; }

    // Those of blocks [first, last), one after another.
    const float* key_scales(Past past, int first, int last) {
        for (int block = first; block < last; ++block)
            std::memcpy(key_scales_.data() + (block - first) * kBlock, past.key_scales(block),
                        kBlock * sizeof(float));
        return key_scales_.data();
    }

  private:
    int stride_;
    Buffer<float> scores_, key_scales_;
};

// Which of the positions from `position` on a query may see, as far as a vector reaches.
inline Mask visible(const Query& query, int position) {
    return Mask::between(query.begin - position, query.end - position);
}

// Integers -> scores in units of log2, -inf for what `query` may not see, up to the end of the last
// span; returns the greatest. Both arrays begin at position `from`, a multiple of kBlock, and the keys
// of the sequence end at `to`.
inline float scale_scores(const Query& query, const float* key_scales, int from, int to,
                          float* scores) {
    const Ints start = Ints::all(query.start);
    const Floats scale = Floats::all(query.scale), nothing = Floats::all(-INFINITY);
    Floats largest = nothing;
    for (int i = 0; i < to - from; i += kLanes) {
        Floats s = to_floats(Ints::load(scores + i) + start) *
                   (scale * Floats::load(key_scales + i));
        if (from + i < query.begin || from + i + kLanes > query.end)
            s = select(visible(query, from + i), s, nothing);
        largest = max(largest, s);
        s.store(scores + i);
    }
    for (int i = to - from; i % kSpan; i += kLanes) nothing.store(scores + i);
    return largest.max();
}

// Softmax weights of one span times the scales of its values, rounded relative to the largest, and the
// unit they are in. `at` says where a weight lies. `total` adds up the weights themselves. Unless
// the whole span is visible, `seen` masks it.
template <bool Whole>
[[gnu::noinline]] float weigh(const float* scores, float top, const Floats* value_scales,
                              const Mask* seen, Floats& total, uint8_t* weights) {
    const Floats highest = Floats::all(top);
    Floats scaled[kVectorsPerSpan];
    Mask bad;
    Floats largest = Floats::all(0.0f);
#pragma GCC unroll 8
    for (int i = 0; i < kVectorsPerSpan; ++i) {
        const Floats p = exp2_nonpositive(Floats::load(scores + i * kLanes) - highest);
        total = total + p;
        // Masked: a slot that was never written for this sequence may hold anything.
        const Floats scale =
            Whole ? value_scales[i] : select(seen[i], value_scales[i], Floats::all(0.0f));
        scaled[i] = p * scale;
        bad = bad | is_nan(scaled[i]);  // a maximum may lose it
        largest = max(largest, scaled[i]);
    }
    const float most = bad.any() ? NAN : largest.max();
    const Floats inverse = Floats::all(most > 0 ? kWeightSteps / most : 0);
#pragma GCC unroll 2
    for (int i = 0; i < kVectorsPerSpan; i += 4) {
        const Ints whole[4] = {to_ints(scaled[i] * inverse), to_ints(scaled[i + 1] * inverse),
                               to_ints(scaled[i + 2] * inverse), to_ints(scaled[i + 3] * inverse)};
        store_interleaved(whole, weights + i * kLanes);
    }
    return most / kWeightSteps;
}

// Where `weigh` puts the weights of four positions of a span, `position` the first of them.
constexpr int at(int position) {
    const int vector = position / kLanes;
    return vector / 4 * 4 * kLanes + position % kLanes * 4 + vector % 4 * 4;
}

}  // namespace tickertape
