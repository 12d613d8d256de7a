// Stands in for kernels/memory.h where the address sanitizer looks on: from the heap, to the byte.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

namespace tickertape {

template <typename T>
class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(size_t count, bool = false) {
        void* at = nullptr;
        if (posix_memalign(&at, 64, count * sizeof(T))) throw std::bad_alloc();
        std::memset(at, 0, count * sizeof(T));
        data_ = static_cast<T*>(at);
    }
    Buffer(Buffer&& other) noexcept { std::swap(data_, other.data_); }
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(data_, other.data_);
        return *this;
    }
    ~Buffer() { std::free(data_); }

    T* data() { return data_; }
    const T* data() const { return data_; }
    T& operator[](size_t index) { return data_[index]; }
    const T& operator[](size_t index) const { return data_[index]; }
    explicit operator bool() const { return data_ != nullptr; }

  private:
    T* data_ = nullptr;
};

class Arena {
  public:
    uint8_t* take(size_t bytes) { return pieces_.emplace_back(bytes).data(); }

  private:
    std::vector<Buffer<uint8_t>> pieces_;
};

}  // namespace tickertape
