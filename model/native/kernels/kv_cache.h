// The paged KV cache: signed bytes with one scale per position and KV head.
//
// Keys and values are both laid out so that a lane multiplies four of them. A block holds kBlock positions
// of one KV head:
//
//     keys    [d / 4][kBlock][4]   stored with kOffset added (the left side of the product)
//     values  [kBlock / 4][d][4]
//     scales  keys [kBlock], values [kBlock]
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "memory.h"
#include "prefetch.h"
#include "simd.h"

namespace tickertape {

constexpr int kBlock = 16;
constexpr int kAhead = 2;  // blocks between a prefetch and its use

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

// What one sequence has in the cache: of one layer and KV head. Blocks are those of its table.
struct Past {
    KVCache* cache;
    int layer, kv_head;
    const int32_t* table;

    int head_dim() const { return cache->head_dim(); }
    uint8_t* record(int block) const { return cache->record(layer, table[block], kv_head); }
    const uint8_t* keys(int block) const { return cache->keys(record(block)); }
    const int8_t* values(int block) const { return cache->values(record(block)); }
    const float* key_scales(int block) const { return cache->key_scales(record(block)); }
    const float* value_scales(int block) const { return cache->value_scales(record(block)); }

    // Blocks lie anywhere in memory, where no hardware prefetcher finds the next one: they are fetched by hand,
    // half a block at a time.
    size_t half_bytes() const { return KVCache::record_bytes(head_dim()) / 2; }
    const uint8_t* half(int index) const { return record(index / 2) + index % 2 * half_bytes(); }
    void prefetch_half(int index) const { prefetch(half(index), half_bytes()); }
    void prefetch_block(int block) const {
        prefetch_half(2 * block);
        prefetch_half(2 * block + 1);
    }
};

// What is to be fetched while one sequence's keys and values are multiplied: more of its own, if they are
// cold, and what the next one will read, halves [next, last) of its blocks.
struct Upcoming {
    bool cold = false;
    Past past = {};
    int next = 0, last = 0;

    // What to fetch now, so that all is under way after `steps` calls: half a block, or nothing.
    const uint8_t* due(int steps) {
        int left = (last - next + steps - 1) / steps;
        for (; left > 1; --left) past.prefetch_half(next++);
        return left > 0 ? past.half(next++) : nullptr;
    }
    void fetch_some(int steps) {
        if (const uint8_t* half = due(steps)) prefetch(half, past.half_bytes());
    }
};

}  // namespace tickertape
