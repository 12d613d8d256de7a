// The tile registers of AMX: eight matrices of 16 rows of 64 bytes, for each thread.
//
// A tile product adds, for 16 rows and 16 outputs, the products of 64 bytes: exactly a group of an
// activation row (activations.h), so the sums are those of AVX-512 VNNI, eight times as many a cycle.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "simd.h"

#if defined(TICKERTAPE_AVX512) && defined(__AMX_INT8__) && defined(__linux__)
#define TICKERTAPE_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tickertape {

#ifdef TICKERTAPE_AMX

constexpr int kTileSize = 16;  // rows of each tile, and 32-bit columns

// Linux lets a process use tiles once it has asked (Documentation/arch/x86/xstate.rst).
inline bool ask_for_tiles() {
    constexpr int kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// A thread's tiles, all of them of the full size, while this object lives.
class TileRegisters {
  public:
    explicit TileRegisters(bool wanted) : in_use_(wanted) {
        if (!in_use_) return;
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t column_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } const config;
        asm volatile("ldtilecfg %0" ::"m"(config));
    }
    ~TileRegisters() {
        if (in_use_) asm volatile("tilerelease");
    }
    TileRegisters(const TileRegisters&) = delete;
    TileRegisters& operator=(const TileRegisters&) = delete;

  private:
    bool in_use_;
};

// Not the intrinsics: a tile's number would have to be written as a digit, and GCC 12 does not know
// that they read memory.

// Sixteen times 64 bytes, `stride` bytes apart.
template <int Tile>
inline void load_tile(const void* from, int64_t stride) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(Tile), "r"(from), "r"(stride) : "memory");
}

template <int Tile>
inline void store_tile(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(Tile), "r"(to), "r"(stride) : "memory");
}

template <int Tile>
inline void clear_tile() {
    asm volatile("tilezero %%tmm%c0" ::"i"(Tile));
}

// Sums += the products of `Left` [16 rows][64 bytes] and `Right` [16 times four bytes][16 columns][4].
template <int Sums, int Left, int Right>
inline void multiply_signed_signed() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sums), "i"(Left), "i"(Right));
}
template <int Sums, int Left, int Right>
inline void multiply_signed_unsigned() {
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sums), "i"(Left), "i"(Right));
}
template <int Sums, int Left, int Right>
inline void multiply_unsigned_signed() {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sums), "i"(Left), "i"(Right));
}

#else

inline bool ask_for_tiles() { return false; }

struct TileRegisters {
    explicit TileRegisters(bool) {}
};

#endif

}  // namespace tickertape
