// Memory for large tables that are read here and there: on huge pages, where the system has them,
// such a read costs no walk through the page tables.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace vikhr {

inline constexpr std::size_t kHugePage = std::size_t{1} << 21;

// Asks for huge pages where `memory` holds whole ones. To be said before the memory is touched.
inline void advise_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__)
  void* aligned = memory;
  std::size_t left = bytes;
  if (std::align(kHugePage, kHugePage, aligned, left) == nullptr) return;
  madvise(aligned, left / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
}

// An allocator that rounds large sizes up to whole huge pages. Values that a vector makes without an
// initial value have none: nothing is touched before it is written.
template <typename Value>
struct HugeAllocator {
  using value_type = Value;

  HugeAllocator() = default;
  template <typename Other>
  HugeAllocator(const HugeAllocator<Other>&) {}  // NOLINT: allocators convert

  // As many values as take no more memory than `count` do.
  static std::size_t fill(std::size_t count) {
    return is_large(count) ? rounded(count) / sizeof(Value) : count;
  }

  Value* allocate(std::size_t count) {
    if (count > static_cast<std::size_t>(-1) / 2 / sizeof(Value)) throw std::bad_alloc();
    void* memory = is_large(count) ? std::aligned_alloc(kHugePage, rounded(count))
                                   : std::malloc(count * sizeof(Value));
    if (memory == nullptr) throw std::bad_alloc();
    if (is_large(count)) advise_huge_pages(memory, rounded(count));
    return static_cast<Value*>(memory);
  }
  void deallocate(Value* values, std::size_t) { std::free(values); }

  template <typename Made>
  void construct(Made* place) {
    ::new (static_cast<void*>(place)) Made;
  }

  struct Free {
    void operator()(Value* values) const { std::free(values); }
  };

  bool operator==(const HugeAllocator&) const { return true; }
  bool operator!=(const HugeAllocator&) const { return false; }

 private:
  static bool is_large(std::size_t count) { return count * sizeof(Value) >= kHugePage / 2; }
  static std::size_t rounded(std::size_t count) {
    return (count * sizeof(Value) + kHugePage - 1) / kHugePage * kHugePage;
  }
};

template <typename Value>
using HugeVector = std::vector<Value, HugeAllocator<Value>>;

}  // namespace vikhr
