// Weights that came in 4 bits and stay so, for AVX2.
//
// w = s * (a * q + b) with 16-bit integers a and b for every kFourGroup inputs. Products of q need no more
// than 16 bits over a whole group, so nothing saturates, and a is the factor that the sum of each
// pair has to be multiplied by anyway: this is twice as fast as 8-bit weights, for any batch.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "simd.h"

namespace tickertape {

constexpr int kFourGroup = 32;  // inputs that share a and b
constexpr bool kFourBitsAlone = true;

struct FourBits {
    // |a * q + b| stays below 2^15; a then below 2^15 * 2 / 15, and no sum of a group pair above 2^31.
    static constexpr float kSteps = 32000;

    // 64 inputs of sixteen outputs: a of both groups, b of both groups, then nibbles.
    static constexpr int kFactorBytes = 2 * 64;
    static constexpr int kPieceBytes = kFactorBytes + 16 * 32;

    static constexpr size_t panel_bytes(int inputs) { return size_t(inputs / 64) * 2 * kPieceBytes; }

    // `scale` is what 1 is worth in this row.
    static int16_t rounded_step(float step, float scale) { return rounded(step, scale); }
    static int16_t rounded_start(float start, float scale) { return rounded(start, scale); }
    static uint8_t byte(int, int, int) { return 0; }  // there is no 8-bit form

    // Nibbles [outputs][inputs] and a, b [outputs][inputs / kFourGroup] of a panel, as they are read:
    // [half a panel][inputs / 64] pieces. A vector of nibbles has four inputs of eight outputs in
    // its lower halves, and those of the next eight in its upper ones.
    static void interleave(const uint8_t* nibbles, const int16_t* a, const int16_t* b, int inputs,
                           uint8_t* to) {
        const int groups = inputs / kFourGroup;
        for (int half = 0; half < 2; ++half)
            for (int k = 0; k < inputs; k += 64) {
                for (const int16_t* factors : {a, b})
                    for (int n = half * 16; n < half * 16 + 16; ++n, to += 4)
                        std::memcpy(to, factors + size_t(n) * groups + k / kFourGroup, 4);
                for (int i = k; i < k + 64; i += 4)
                    for (int n = half * 16; n < half * 16 + 8; ++n)
                        for (int j = i; j < i + 4; ++j, ++to)
                            *to = uint8_t(nibbles[size_t(n) * inputs + j] |
                                          nibbles[size_t(n + 8) * inputs + j] << 4);
            }
    }

    // Weight k of output n of a panel, in units of the row's scale.
    static int weight(const uint8_t* panel, int inputs, int n, int k) {
        const uint8_t* piece = panel + size_t(n / 16 * (inputs / 64) + k / 64) * kPieceBytes;
        int16_t a[2], b[2];
        std::memcpy(a, piece + n % 16 * 4, 4);
        std::memcpy(b, piece + 64 + n % 16 * 4, 4);
        const int byte = piece[kFactorBytes + k % 64 / 4 * 32 + n % 8 * 4 + k % 4];
        const int q = n % 16 < 8 ? byte & 15 : byte >> 4;
        return a[k % 64 / kFourGroup] * q + b[k % 64 / kFourGroup];
    }

  private:
    static int16_t rounded(float x, float scale) {
        return int16_t(std::lrintf(scale > 0 ? x / scale : 0));
    }
};

}  // namespace tickertape
