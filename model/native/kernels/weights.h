// Matrices in 8 bits, or in 4 bits where they came so.
//
// A row (an output channel) has one scale s: w = s * q with q a signed byte, stored with kOffset added.
// Panels of kPanel rows are multiplied together, so a panel lies as [inputs / 4][kPanel][4].
//
// Many models are shipped with 4-bit weights, w = d * q + m with d and m for every 32 inputs (GGUF's
// Q4_1). Such a matrix is recognized, and kept in the form of four_bits_*.h: alone, or beside its bytes.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "memory.h"
#include "prefetch.h"
#include "simd.h"

#ifdef TICKERTAPE_AVX512
#include "four_bits_avx512.h"
#else
#include "four_bits_avx2.h"
#endif

namespace tickertape {

constexpr int kPanel = 32;  // outputs computed together

class Weights {
  public:
    Weights() = default;

    // Quantize `w`, row-major floats (outputs, inputs); inputs must be a multiple of 64. The result lies in
    // `arena`.
    Weights(const float* w, int outputs, int inputs, Arena& arena)
        : outputs_(outputs),
          inputs_(inputs),
          panels_((outputs + kPanel - 1) / kPanel),
          scales_(size_t(panels_) * kPanel) {
        const bool four = came_in_four_bits(w);
        if (four) nibbles_ = arena.take(panels_ * FourBits::panel_bytes(inputs));
        if (!four || !kFourBitsAlone)
            bytes_ = arena.take(size_t(panels_) * kPanel * inputs);
        Rows rows(inputs);
        for (int panel = 0; panel < panels_; ++panel) {
            for (int n = 0; n < kPanel; ++n) {
                const int row = panel * kPanel + n;
                if (row >= outputs)
                    rows.set_zero(n);
                else if (four)
                    scales_[row] = rows.set_four_bits(n, w + size_t(row) * inputs);
                else
                    scales_[row] = rows.set(n, w + size_t(row) * inputs);
            }
            if (bytes_) rows.interleave(bytes_ + size_t(panel) * kPanel * inputs);
            if (four)
                FourBits::interleave(rows.nibbles.data(), rows.a.data(), rows.b.data(), inputs,
                                     nibbles_ + panel * FourBits::panel_bytes(inputs));
        }
    }

    int outputs() const { return outputs_; }
    int inputs() const { return inputs_; }
    int panels() const { return panels_; }
    bool has_four_bits() const { return nibbles_ != nullptr; }
    const uint8_t* panel(int index) const { return bytes_ + size_t(index) * kPanel * inputs_; }
    const uint8_t* four_bit_panel(int index) const {
        return nibbles_ + index * FourBits::panel_bytes(inputs_);
    }
    const float* scales(int panel) const { return scales_.data() + size_t(panel) * kPanel; }

    // What one product with a few rows reads.
    size_t bytes_read() const {
        return panels_ *
               (has_four_bits() ? FourBits::panel_bytes(inputs_) : size_t(kPanel) * inputs_);
    }

    // Row n as floats: an embedding look-up.
    void row(int n, float* out) const {
        const float scale = scales_[n];
        for (int k = 0; k < inputs_; ++k) out[k] = float(steps(n, k)) * scale;
    }

  private:
    // Weight k of row n, in units of the row's scale.
    int steps(int n, int k) const {
        if (!bytes_) return FourBits::weight(four_bit_panel(n / kPanel), inputs_, n % kPanel, k);
        const uint8_t byte = panel(n / kPanel)[(size_t(k / 4) * kPanel + n % kPanel) * 4 + k % 4];
        return int8_t(byte ^ kOffset);
    }

    // The rows of one panel on their way from floats to their interleaved form.
    struct Rows {
        int inputs;
        std::vector<uint8_t> bytes, nibbles;  // [kPanel][inputs]
        std::vector<int16_t> a, b;            // [kPanel][inputs / kFourGroup]

        explicit Rows(int inputs)
            : inputs(inputs),
              bytes(size_t(kPanel) * inputs),
              nibbles(size_t(kPanel) * inputs),
              a(size_t(kPanel) * inputs / kFourGroup),
              b(size_t(kPanel) * inputs / kFourGroup) {}

        void set_zero(int n) {
            std::fill_n(bytes.begin() + size_t(n) * inputs, inputs, uint8_t(kOffset));
            std::fill_n(nibbles.begin() + size_t(n) * inputs, inputs, uint8_t(0));
            const int groups = inputs / kFourGroup;
            std::fill_n(a.begin() + size_t(n) * groups, groups, int16_t(0));
            std::fill_n(b.begin() + size_t(n) * groups, groups, FourBits::rounded_start(0, 0));
        }

        // Round to the nearest of 255 steps; returns the row's scale.
        float set(int n, const float* w) {
            const float largest = largest_magnitude(w, inputs);
            uint8_t* to = bytes.data() + size_t(n) * inputs;
            quantize(w, inputs, largest > 0 ? 127 / largest : 0, reinterpret_cast<int8_t*>(to));
            for (int k = 0; k < inputs; ++k) to[k] ^= kOffset;
            return largest / 127;
        }

        // As `set`, the bytes being those that q, a and b give; returns the row's scale.
        float set_four_bits(int n, const float* w) {
            const float scale = largest_magnitude(w, inputs) / FourBits::kSteps;
            for (int g = 0; g < inputs / kFourGroup; ++g) {
                const size_t at = size_t(n) * inputs + g * kFourGroup;
                const size_t group = size_t(n) * (inputs / kFourGroup) + g;
                const Grid grid = fit(w + g * kFourGroup, nibbles.data() + at);
                a[group] = FourBits::rounded_step(grid.step, scale);
                b[group] = FourBits::rounded_start(grid.start, scale);
                for (int k = 0; k < kFourGroup; ++k)
                    bytes[at + k] = FourBits::byte(nibbles[at + k], a[group], b[group]);
            }
            return scale;
        }

        void interleave(uint8_t* to) const {
            for (int k = 0; k < inputs; k += 4)
                for (int n = 0; n < kPanel; ++n, to += 4)
                    std::memcpy(to, bytes.data() + size_t(n) * inputs + k, 4);
        }
    };

    struct Grid {
        float step, start;  // w = start + step * q
        bool fits;          // within a fiftieth of a step; never where a weight is NaN
    };

    // The sixteen equal steps that a group of kFourGroup weights spans, and where each weight lies.
    static Grid fit(const float* w, uint8_t* q) {
        Floats least = Floats::load(w), greatest = least;
        for (int i = kLanes; i < kFourGroup; i += kLanes) {
            least = min(least, Floats::load(w + i));
            greatest = max(greatest, Floats::load(w + i));
        }
        const float low = least.min(), high = greatest.max();
        const Floats inverse = Floats::all(high > low ? 15 / (high - low) : 0);
        Mask near = Mask::between(0, kLanes);
        for (int i = 0; i < kFourGroup; i += kLanes) {
            const Floats place = (Floats::load(w + i) - Floats::all(low)) * inverse;
            const Ints whole = to_ints(place);
            near = near & less(magnitude(place - to_floats(whole)), Floats::all(0.02f));
            store_bytes(whole, reinterpret_cast<int8_t*>(q + i));
        }
        return {(high - low) / 15, low, near.all()};
    }

    // Whether every group's weights lie on sixteen equal steps, from its least to its greatest.
    bool came_in_four_bits(const float* w) const {
        uint8_t q[kFourGroup];
        const size_t count = size_t(outputs_) * inputs_;
        for (size_t i = 0; i < count; i += kFourGroup)
            if (!fit(w + i, q).fits) return false;
        return true;
    }

    int outputs_ = 0, inputs_ = 0, panels_ = 0;
    uint8_t* bytes_ = nullptr;
    uint8_t* nibbles_ = nullptr;
    Buffer<float> scales_;
};

// Weights that will be wanted next, fetched into the second-level cache a little with every step: so
// memory delivers while the multipliers work.
struct Ahead {
    const uint8_t* from;
    int stride;  // bytes for every four inputs of a panel that are multiplied

    void fetch() {
        prefetch(from);
        prefetch(from + stride / 2);
        from += stride;
    }

    void fetch(int steps) {
        prefetch(from, size_t(steps) * stride);
        from += steps * stride;
    }
};

}  // namespace tickertape
