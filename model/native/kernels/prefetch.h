// Lines of memory fetched into the second-level cache before they are wanted.
#pragma once

#include <cstddef>

namespace tickertape {

// Fetch the line at an address into the second-level cache.
//
// Not the builtin: GCC 12 takes a function that only prefetches for one without effect, and drops
// its calls.
inline void prefetch(const void* line) {
    asm volatile("prefetcht1 %0" ::"m"(*static_cast<const char*>(line)));
}

inline void prefetch(const void* from, size_t bytes) {
    for (size_t at = 0; at < bytes; at += 64) prefetch(static_cast<const char*>(from) + at);
}

}  // namespace tickertape
