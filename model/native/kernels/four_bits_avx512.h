// Weights that came in 4 bits, kept beside their 8-bit form, for AVX-512 VNNI.
//
// u = (a * q + b) >> 4 with integers a and b for every kFourGroup inputs gives exactly the stored bytes.
// A small batch is bound by the memory it reads, and reads these; a large one is bound by
// arithmetic, and reads the bytes.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "simd.h"

namespace tickertape {

constexpr int kFourGroup = 32;  // inputs that share a and b
constexpr bool kFourBitsAlone = false;

// Per group and half a panel: a and b of sixteen outputs, then four vectors of nibbles.
constexpr int kFourVectors = 5;

struct FourBits {
    // One step less than 127: a and b are rounded, and no byte may overflow.
    static constexpr float kSteps = 126;

    static constexpr size_t panel_bytes(int inputs) {
        return size_t(inputs / kFourGroup) * 2 * kFourVectors * 64;
    }

    // `scale` is what a byte's step is worth in this row.
    static int16_t rounded_step(float step, float scale) {
        return int16_t(std::lrintf(step * sixteenths(scale)));
    }
    static int16_t rounded_start(float start, float scale) {
        return int16_t(std::lrintf(start * sixteenths(scale)) + 128 * 16 + 8);
    }
    static uint8_t byte(int q, int a, int b) { return uint8_t((q * a + b) >> 4); }

    // Nibbles [outputs][inputs] and a, b [outputs][inputs / kFourGroup] of a panel, as they are read.
    static void interleave(const uint8_t* nibbles, const int16_t* a, const int16_t* b, int inputs,
                           uint8_t* to) {
        const int groups = inputs / kFourGroup;
        for (int g = 0; g < groups; ++g)
            for (int half = 0; half < 2; ++half) {
                for (int n = half * 16; n < half * 16 + 16; ++n, to += 4) {
                    const int16_t pair[2] = {a[size_t(n) * groups + g], b[size_t(n) * groups + g]};
                    std::memcpy(to, pair, 4);
                }
                for (int k = g * kFourGroup; k < (g + 1) * kFourGroup; k += 8)
                    for (int n = half * 16; n < half * 16 + 16; ++n, to += 4) {
                        // Two 16-bit lanes, each two inputs of the first four and of the second.
                        uint64_t q;
                        std::memcpy(&q, nibbles + size_t(n) * inputs + k, 8);
                        const uint32_t x = uint32_t(_pext_u64(q, 0x0f0f0f0f0f0f0f0full));
                        const uint32_t lanes =
                            (x & 0xff0000ff) | (x & 0xff00) << 8 | (x & 0xff0000) >> 8;
                        std::memcpy(to, &lanes, 4);
                    }
            }
    }

    // Single weights are read from the 8-bit form.
    static int weight(const uint8_t*, int, int, int) { return 0; }

  private:
    static float sixteenths(float scale) { return scale > 0 ? 16 / scale : 0; }
};

}  // namespace tickertape
