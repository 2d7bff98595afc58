#include "dedup/prepared_texts.hpp"

#include "base/hash.hpp"

namespace vikhr {
namespace {

// Sets that have it in common are looked at closely, so that a plain sum is good enough.
std::uint32_t key_of_set(const std::vector<std::uint32_t>& band_keys) {
  std::uint64_t sum = 0;
  for (std::size_t band = 0; band < band_keys.size(); ++band) {
    sum += (2 * band + 1) * std::uint64_t{band_keys[band]};
  }
  return static_cast<std::uint32_t>(hash_word(sum) >> 32);
}

}  // namespace

void Preparer::prepare(const Text& text, std::size_t document, InvalidUtf8 policy,
                       SetStorage& storage, PreparedTexts& out, std::size_t i) {
  shingles_.clear();
  out.is_short[i] = shingler_.append(text, document, policy, shingles_);
  out.shingles[i] = storage.store(shingles_.data(), shingles_.size(), shingles_.size() == 1);
  make_keys(out, i);
}

void Preparer::make_keys(PreparedTexts& out, std::size_t i) {
  const StoredShingles& shingles = out.shingles[i];
  minhash_.sign(shingles.values, shingles.size, signature_.data());
  minhash_.band_keys(signature_.data(), band_keys_.data());
  std::uint32_t* key = out.keys.data() + i;
  *key = key_of_set(band_keys_);
  for (const std::uint32_t band_key : band_keys_) *(key += out.size()) = band_key;
}

}  // namespace vikhr
