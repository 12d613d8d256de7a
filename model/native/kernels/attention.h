// Paged attention over an 8-bit KV cache.
//
//     out = sum over visible positions j of softmax(q . k_j / sqrt(d))_j v_j
//
// Keys and values are signed bytes with one scale per position and KV head, both laid out so that a
// lane multiplies four of them. A block holds kBlock positions of one KV head:
//
//     keys    [d / 4][kBlock][4]   stored with kOffset added (the left side of the product)
//     values  [kBlock / 4][d][4]
//     scales  keys [kBlock], values [kBlock]
//
// Softmax weights are multiplied by their value's scale and rounded to kWeightSteps relative to the
// largest of kSpan positions. Spans begin at multiples of kSpan in the sequence, so a row's result does
// not depend on chunks or on the batch.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "memory.h"
#include "simd.h"

namespace tickertape {

constexpr int kBlock = 16;
constexpr int kBlocksPerSpan = 4;
constexpr int kSpan = kBlock * kBlocksPerSpan;
constexpr int kAhead = 2;       // blocks between a prefetch and its use
constexpr int kMaxQueries = 6;  // queries that read the same keys together
constexpr int kVectorsPerSpan = kSpan / kLanes;
constexpr int kValueVectors = kLanes == 16 ? 4 : 2;  // of a head, that are added up together

class KVCache {
  public:
    KVCache(int layers, int blocks, int kv_heads, int head_dim)
        : blocks_(blocks),
          kv_heads_(kv_heads),
          head_dim_(head_dim),
          record_(record_bytes(head_dim)),
          data_(size_t(layers) * blocks * kv_heads * record_, true) {}

    static size_t record_bytes(int head_dim) {
        return size_t(2) * kBlock * head_dim + 2 * kBlock * sizeof(float);
    }

    uint8_t* record(int layer, int block, int kv_head) {
        return data_.data() + ((size_t(layer) * blocks_ + block) * kv_heads_ + kv_head) * record_;
    }
    uint8_t* keys(uint8_t* record) const { return record; }
    int8_t* values(uint8_t* record) const {
        return reinterpret_cast<int8_t*>(record) + kBlock * head_dim_;
    }
    float* key_scales(uint8_t* record) const {
        return reinterpret_cast<float*>(record + 2 * kBlock * head_dim_);
    }
    const float* key_scales(const uint8_t* record) const {
        return reinterpret_cast<const float*>(record + 2 * kBlock * head_dim_);
    }
    float* value_scales(uint8_t* record) const { return key_scales(record) + kBlock; }

    // Store position `slot` of a block.
    void write(int layer, int block, int slot, int kv_head, const float* key, const float* value) {
        uint8_t* at = record(layer, block, kv_head);
        alignas(64) int8_t q[kMaxHeadDim];
        key_scales(at)[slot] = quantized(key, q);
        uint8_t* keys = this->keys(at) + slot * 4;
        for (int d = 0; d < head_dim_; d += 4) {
            uint32_t four;
            std::memcpy(&four, q + d, 4);
            four ^= kOffset * 0x01010101u;  // added in every byte
            std::memcpy(keys + d * kBlock, &four, 4);
        }
        value_scales(at)[slot] = quantized(value, q);
        int8_t* values = this->values(at) + slot / 4 * 4 * head_dim_ + slot % 4;
        for (int d = 0; d < head_dim_; ++d) values[d * 4] = q[d];
    }

    // Fetch what `write` is about to touch.
    void prefetch_slot(int layer, int block, int slot) {
        for (int kv_head = 0; kv_head < kv_heads_; ++kv_head) {
            uint8_t* at = record(layer, block, kv_head);
            for (int d = 0; d < head_dim_; d += 4) __builtin_prefetch(keys(at) + d * kBlock, 1);
            for (int i = 0; i < 4 * head_dim_; i += 64)
                __builtin_prefetch(values(at) + slot / 4 * 4 * head_dim_ + i, 1);
            __builtin_prefetch(key_scales(at), 1);
            __builtin_prefetch(value_scales(at), 1);
        }
    }

    void copy_block(int layers, int from, int to) {
        for (int layer = 0; layer < layers; ++layer)
            std::memcpy(record(layer, to, 0), record(layer, from, 0), kv_heads_ * record_);
    }

    int head_dim() const { return head_dim_; }

    static constexpr int kMaxHeadDim = 512;

  private:
    float quantized(const float* x, int8_t* q) const {
        const float largest = largest_magnitude(x, head_dim_);
        quantize(x, head_dim_, largest > 0 ? 127 / largest : 0, q);
        return largest / 127;
    }

    int blocks_, kv_heads_, head_dim_;
    size_t record_;
    Buffer<uint8_t> data_;
};

// One query head of one row: its quantized vector, and the positions [begin, end) that it may see.
struct Query {
    const int8_t* q;
    float scale;    // of q, times 1 / sqrt(d), times log2(e)
    int32_t start;  // what takes away the keys' kOffset
    int begin, end;
    float* out;     // head_dim floats
};

// Scratch of one thread: scores and weights of kMaxQueries queries over up to `positions` positions.
class AttentionScratch {
  public:
    explicit AttentionScratch(int positions)
        : stride_((positions + kSpan - 1) / kSpan * kSpan), scores_(size_t(kMaxQueries) * stride_) {}
    float* scores(int query) { return scores_.data() + size_t(query) * stride_; }

  private:
    int stride_;
    Buffer<float> scores_;
};

// Which of the positions from `position` on a query may see, as far as a vector reaches.
inline Mask visible(const Query& query, int position) {
    return Mask::between(query.begin - position, query.end - position);
}

// Blocks lie anywhere in memory, where no hardware prefetcher finds the next one.
inline void prefetch(const void* from, size_t bytes) {
    for (size_t at = 0; at < bytes; at += 64)
        _mm_prefetch(static_cast<const char*>(from) + at, _MM_HINT_T1);
}

// What is in the caches: whether this task's keys are not, as far as is known, and the blocks that
// the next task will read, [next, last) of its table.
struct Upcoming {
    bool cold;
    const int32_t* table;
    int kv_head, next, last;
};

// The three loops that follow are functions of their own: inlined together they need more registers
// than there are, and GCC 12 keeps their sums on the stack.

// Products of `Count` queries with the keys of blocks [first, last): integers, in place of the scores.
template <int Count>
[[gnu::noinline]] void multiply_keys(KVCache& cache, int layer, int kv_head, const int32_t* table,
                                     int first, int last, const Query* queries,
                                     AttentionScratch& scratch, bool cold) {
    const int head_dim = cache.head_dim();
    const int8_t* q[Count];
    float* to[Count];
    for (int i = 0; i < Count; ++i) {
        q[i] = queries[i].q;
        to[i] = scratch.scores(i);
    }
    for (int block = first; block < last; ++block) {
        const uint8_t* keys = cache.keys(cache.record(layer, table[block], kv_head));
        if (cold && block + kAhead < last)
            prefetch(cache.record(layer, table[block + kAhead], kv_head),
                     KVCache::record_bytes(head_dim));
        for (int slot = 0; slot < kBlock; slot += kLanes) {
            Ints sum[Count];
#pragma GCC unroll 6
            for (int i = 0; i < Count; ++i) sum[i] = Ints::all(0);
            for (int d = 0; d < head_dim; d += 4) {
                const Left k = Left::load(keys + d * kBlock + slot * 4);
#pragma GCC unroll 6
                for (int i = 0; i < Count; ++i) add_products(sum[i], k, Right::all(q[i] + d));
            }
#pragma GCC unroll 6
            for (int i = 0; i < Count; ++i)
                sum[i].store(to[i] + (block - first) * kBlock + slot);
        }
    }
}

// Integers -> scores in units of log2, -inf for what `query` may not see, up to the end of the last
// span; returns the greatest.
inline float scale_scores(KVCache& cache, int layer, int kv_head, const int32_t* table, int first,
                          int last, const Query& query, float* scores) {
    const Ints start = Ints::all(query.start);
    const Floats scale = Floats::all(query.scale), nothing = Floats::all(-INFINITY);
    Floats largest = nothing;
    for (int block = first; block < last; ++block) {
        const float* key_scales = cache.key_scales(cache.record(layer, table[block], kv_head));
        const bool whole = query.begin <= block * kBlock && (block + 1) * kBlock <= query.end;
        for (int slot = 0; slot < kBlock; slot += kLanes, scores += kLanes) {
            const Ints product = Ints::load(scores) + start;
            Floats s = to_floats(product) * (scale * Floats::load(key_scales + slot));
            if (!whole) s = select(visible(query, block * kBlock + slot), s, nothing);
            largest = max(largest, s);
            s.store(scores);
        }
    }
    for (int block = last; (block - first) % kBlocksPerSpan; ++block)
        for (int slot = 0; slot < kBlock; slot += kLanes, scores += kLanes) nothing.store(scores);
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

// out[0 .. kLanes * Vectors) += weights . values over one span, for `Count` queries.
template <int Count, int Vectors>
[[gnu::noinline]] void add_values(KVCache& cache, int layer, int kv_head, const int32_t* table,
                                  int first, int last, const uint8_t (*weights)[kSpan],
                                  const float* units, int offset, const Query* queries) {
    const int head_dim = cache.head_dim();
    Ints sum[Count][Vectors];
#pragma GCC unroll 6
    for (int i = 0; i < Count; ++i)
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) sum[i][v] = Ints::all(0);
    for (int block = first; block < last; ++block) {
        uint8_t* record = cache.record(layer, table[block], kv_head);
        const int8_t* values = cache.values(record) + offset * 4;
#pragma GCC unroll 4
        for (int j = 0; j < kBlock; j += 4) {
            const int8_t* four_positions = values + j * head_dim;
            const int from = at((block - first) * kBlock + j);
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

// Attention of `Count` queries of one sequence that share a KV head.
template <int Count>
void attend(KVCache& cache, int layer, int kv_head, const int32_t* table, const Query* queries,
            AttentionScratch& scratch, Upcoming upcoming) {
    int begin = queries[0].begin, end = queries[0].end;
    for (int i = 1; i < Count; ++i) {
        begin = std::min(begin, queries[i].begin);
        end = std::max(end, queries[i].end);
    }
    const int first = begin / kSpan * kBlocksPerSpan, last = (end + kBlock - 1) / kBlock;
    const int head_dim = cache.head_dim();
    multiply_keys<Count>(cache, layer, kv_head, table, first, last, queries, scratch,
                         upcoming.cold);
    Floats total[Count];
    float top[Count];
    for (int i = 0; i < Count; ++i) {
        top[i] = scale_scores(cache, layer, kv_head, table, first, last, queries[i],
                              scratch.scores(i));
        total[i] = Floats::all(0.0f);
        std::memset(queries[i].out, 0, head_dim * sizeof(float));
    }
    alignas(64) uint8_t weights[Count][kSpan];
    float units[Count];
    for (int span = first; span < last; span += kBlocksPerSpan) {
        const int stop = std::min(span + kBlocksPerSpan, last);
        // While these values are added, memory has nothing to do: it fetches for the next one.
        for (int i = span; i < stop && upcoming.next < upcoming.last; ++i, ++upcoming.next)
            prefetch(cache.record(layer, upcoming.table[upcoming.next], upcoming.kv_head),
                     KVCache::record_bytes(head_dim));
        Floats value_scales[kVectorsPerSpan];
        for (int i = 0; i < kVectorsPerSpan; ++i) {
            const int block = span + i * kLanes / kBlock;
            value_scales[i] =
                block < last ? Floats::load(cache.value_scales(cache.record(
                                                layer, table[block], kv_head)) +
                                            i * kLanes % kBlock)
                             : Floats::all(0.0f);
        }
        for (int i = 0; i < Count; ++i) {
            const Query& query = queries[i];
            const float* scores = scratch.scores(i) + (span - first) * kBlock;
            if (query.begin <= span * kBlock && (span + kBlocksPerSpan) * kBlock <= query.end) {
                units[i] = weigh<true>(scores, top[i], value_scales, nullptr, total[i], weights[i]);
            } else {
                Mask seen[kVectorsPerSpan];
                for (int v = 0; v < kVectorsPerSpan; ++v)
                    seen[v] = visible(query, span * kBlock + v * kLanes);
                units[i] = weigh<false>(scores, top[i], value_scales, seen, total[i], weights[i]);
            }
        }
        int offset = 0;
        for (; offset + kValueVectors * kLanes <= head_dim; offset += kValueVectors * kLanes)
            add_values<Count, kValueVectors>(cache, layer, kv_head, table, span, stop, weights,
                                             units, offset, queries);
        for (; offset < head_dim; offset += kLanes)
            add_values<Count, 1>(cache, layer, kv_head, table, span, stop, weights, units, offset,
                                 queries);
    }
    for (int i = 0; i < Count; ++i) {
        const Floats inverse = Floats::all(1 / total[i].sum());
        for (int d = 0; d < head_dim; d += kLanes)
            (Floats::load(queries[i].out + d) * inverse).store(queries[i].out + d);
    }
}

inline void attend(KVCache& cache, int layer, int kv_head, const int32_t* table, int count,
                   const Query* queries, AttentionScratch& scratch, Upcoming upcoming) {
    static constexpr auto kAttend = std::array{attend<1>, attend<2>, attend<3>,
                                               attend<4>, attend<5>, attend<6>};
    kAttend[count - 1](cache, layer, kv_head, table, queries, scratch, upcoming);
}

}  // namespace tickertape
