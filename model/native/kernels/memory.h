// Large, aligned, zeroed memory that costs nothing until it is touched.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

namespace tickertape {

template <typename T>
class Buffer {
  public:
    Buffer() = default;

    explicit Buffer(size_t count, bool huge_pages = false) : bytes_(round_up(count * sizeof(T))) {
        void* at = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (at == MAP_FAILED) throw std::bad_alloc();
        // Streaming through weights touches a new page every few hundred nanoseconds otherwise.
        if (huge_pages) madvise(at, bytes_, MADV_HUGEPAGE);
        data_ = static_cast<T*>(at);
    }

    Buffer(Buffer&& other) noexcept { swap(other); }
    Buffer& operator=(Buffer&& other) noexcept {
        swap(other);
        return *this;
    }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() {
        if (data_) munmap(data_, bytes_);
    }

    T* data() { return data_; }
    const T* data() const { return data_; }
    T& operator[](size_t index) { return data_[index]; }
    const T& operator[](size_t index) const { return data_[index]; }
    explicit operator bool() const { return data_ != nullptr; }

  private:
    static size_t round_up(size_t bytes) { return (bytes + 4095) / 4096 * 4096 + 4096; }

    void swap(Buffer& other) {
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
    }

    T* data_ = nullptr;
    size_t bytes_ = 0;
};

// Zeroed memory in huge pages, handed out piece by piece and given back all at once. The matrices of a small
// model are smaller than one such page: each in pages of its own would be in none.
class Arena {
  public:
    Arena() = default;
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    // Aligned to a cache line.
    uint8_t* take(size_t bytes) {
        bytes = (bytes + 63) / 64 * 64;
        if (bytes > left_) {
            chunks_.emplace_back(std::max(bytes, kChunk) + kHugePage, true);
            const auto at = reinterpret_cast<uintptr_t>(chunks_.back().data());
            next_ = reinterpret_cast<uint8_t*>((at + kHugePage - 1) / kHugePage * kHugePage);
            left_ = std::max(bytes, kChunk);
        }
        uint8_t* piece = next_;
        next_ += bytes;
        left_ -= bytes;
        return piece;
    }

  private:
    static constexpr size_t kHugePage = size_t{2} << 20, kChunk = size_t{64} << 20;

    std::vector<Buffer<uint8_t>> chunks_;
    uint8_t* next_ = nullptr;
    size_t left_ = 0;
};

}  // namespace tickertape
