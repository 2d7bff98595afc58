// A growing array of token ids on malloc: growing large arrays moves pages instead of copying
// them, and the memory can be handed to NumPy as it is.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "base/huge_memory.hpp"

namespace vikhr {

class IdBuffer {
 public:
  IdBuffer() = default;
  explicit IdBuffer(std::size_t size) {
    grow(size);
    size_ = size;
  }
  IdBuffer(IdBuffer&& other) noexcept { swap(other); }
  IdBuffer& operator=(IdBuffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~IdBuffer() { std::free(data_); }

  const std::int32_t* data() const { return data_; }
  std::int32_t* data() { return data_; }
  std::size_t size() const { return size_; }

  void append(std::int32_t id) {
    if (size_ == capacity_) grow(size_ + 1);
    data_[size_++] = id;
  }
  void append(const std::int32_t* ids, std::size_t count) {
    if (capacity_ - size_ < count) grow(size_ + count);
    if (count != 0) std::memcpy(data_ + size_, ids, count * sizeof *ids);
    size_ += count;
  }
  // Room for `count` ids at the end, which count only after advance().
  std::int32_t* reserve(std::size_t count) {
    if (capacity_ - size_ < count) grow(size_ + count);
    return data_ + size_;
  }
  void advance(std::size_t count) { size_ += count; }
  void clear() { size_ = 0; }
  void shrink_to_fit() {
    if (size_ < capacity_) resize(size_);
  }

  // The caller frees the memory; the buffer is empty afterwards.
  std::int32_t* release() {
    size_ = capacity_ = 0;
    return std::exchange(data_, nullptr);
  }

 private:
  void swap(IdBuffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(capacity_, other.capacity_);
  }

  void grow(std::size_t needed) {
    const std::size_t more = capacity_ < 64 ? 64 : capacity_ + capacity_ / 2;
    resize(std::max(more, needed));
    advise_huge_pages(data_ + size_, (capacity_ - size_) * sizeof *data_);
  }

  void resize(std::size_t capacity) {
    void* moved = std::realloc(data_, std::max<std::size_t>(capacity, 1) * sizeof *data_);
    if (moved == nullptr) throw std::bad_alloc();
    data_ = static_cast<std::int32_t*>(moved);
    capacity_ = capacity;
  }

  std::int32_t* data_ = nullptr;
  std::size_t size_ = 0;
  std::size_t capacity_ = 0;
};

}  // namespace vikhr
