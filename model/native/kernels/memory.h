// Large, aligned, zeroed memory that costs nothing until it is touched.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <new>

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

}  // namespace tickertape
