#include "text/boundaries.hpp"

namespace vikhr {

std::vector<std::int64_t> shared_boundaries(const TokenLengths& first, const TokenLengths& second,
                                            std::size_t texts) {
  std::vector<std::int64_t> shared(static_cast<std::size_t>(first.offsets[texts]), -1);
  for (std::size_t text = 0; text < texts; ++text) {
    const std::int64_t end = second.offsets[text + 1];
    std::int64_t at = second.offsets[text];
    std::int64_t first_byte = first.starts[text];
    std::int64_t second_byte = second.starts[text];  // where the tokens before `at` end
    for (std::int64_t token = first.offsets[text]; token < first.offsets[text + 1]; ++token) {
      first_byte += first.lengths[token];
      const bool is_last = token + 1 == first.offsets[text + 1] || first.lengths[token + 1] > 0;
      while (at < end && second_byte + second.lengths[at] <= first_byte) {
        second_byte += second.lengths[at++];
      }
      const bool has_any = at > second.offsets[text];
      if (is_last && has_any && second_byte == first_byte) {
        shared[static_cast<std::size_t>(token)] = at - 1;
      }
    }
  }
  return shared;
}

}  // namespace vikhr
