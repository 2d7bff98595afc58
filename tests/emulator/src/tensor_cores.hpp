// What mma and wgmma have in common: elements, and a product of small matrices.
#pragma once

#include <string>

#include "numbers.hpp"

namespace ptx {

enum class Elements : u8 { f16, bf16, tf32 };

Elements elements_of(const std::string& type);

inline int bytes_of(Elements elements) { return elements == Elements::tf32 ? 4 : 2; }

// The element that lies `index` places up in 32 bits. tf32 has 10 bits of fraction, the rest is cut
// off.
inline float element_of(Elements elements, u32 bits, int index) {
  if (elements == Elements::tf32) return bits_as<float>(bits & 0xffffe000u);
  const u16 half = u16(bits >> (16 * index));
  return elements == Elements::f16 ? Half::wide(half) : Bfloat16::wide(half);
}

// sums[rows][columns] += left[rows][depth] right[depth][columns]. Products are exact; they are
// added one after the other in single precision or, where rough, eight at a time and cut off, as
// tensor cores do at worst.
void multiply(const float* left, const float* right, float* sums, int rows, int columns, int depth,
              bool rough);

}  // namespace ptx
