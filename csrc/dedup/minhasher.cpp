#include "dedup/minhasher.hpp"

#include <algorithm>

#include "base/threads.hpp"

namespace vikhr {

MinHasher::MinHasher(ShingleKind shingle, const MinHashSettings& settings, Isa isa)
    : shingle_((check(shingle), shingle)), minhash_(settings, isa), isa_(isa) {}

ShingleSets MinHasher::sets(const Texts& texts, InvalidUtf8 policy, unsigned threads) const {
  const std::vector<std::size_t> starts = cut_in_blocks(texts, kShingledTogether);
  const std::size_t blocks = starts.size() - 1;
  std::vector<std::vector<std::uint64_t>> parts(blocks);
  ShingleSets result;
  result.offsets.resize(texts.size() + 1);
  result.is_short.resize(texts.size());
  run_blocks(blocks, resolve_threads(threads), [&]() {
    return [&, shingler = Shingler(shingle_, isa_), maker = SetMaker()](std::size_t block) mutable {
      std::vector<std::uint64_t>& part = parts[block];
      for (std::size_t i = starts[block]; i < starts[block + 1]; ++i) {
        const std::size_t start = part.size();
        result.is_short[i] = shingler.append(texts[i], i, policy, part);
        const std::size_t size = maker.make_set(part.data() + start, part.size() - start);
        part.resize(start + size);
        result.offsets[i + 1] = static_cast<std::int64_t>(size);
      }
    };
  });
  for (std::size_t i = 0; i < texts.size(); ++i) result.offsets[i + 1] += result.offsets[i];
  result.values.reserve(static_cast<std::size_t>(result.offsets.back()));
  for (std::vector<std::uint64_t>& part : parts) {
    result.values.insert(result.values.end(), part.begin(), part.end());
    std::vector<std::uint64_t>().swap(part);
  }
  return result;
}

void MinHasher::signatures(const Texts& texts, InvalidUtf8 policy, unsigned threads,
                           std::uint32_t* signatures) const {
  const std::vector<std::size_t> starts = cut_in_blocks(texts, kShingledTogether);
  run_blocks(starts.size() - 1, resolve_threads(threads), [&]() {
    return [&, shingler = Shingler(shingle_, isa_), shingles = std::vector<std::uint64_t>(),
            signature = std::vector<std::uint32_t>(minhash_.padded())](std::size_t block) mutable {
      const std::size_t size = minhash_.settings().num_perm;
      for (std::size_t i = starts[block]; i < starts[block + 1]; ++i) {
        shingles.clear();
        shingler.append(texts[i], i, policy, shingles);
        minhash_.sign(shingles.data(), shingles.size(), signature.data());
        std::copy_n(signature.data(), size, signatures + i * size);
      }
    };
  });
}

void MinHasher::band_keys(const std::uint64_t* values, const std::int64_t* offsets,
                          std::size_t sets, unsigned threads, std::uint32_t* keys) const {
  constexpr std::size_t kBlock = 1 << 12;  // sets
  run_blocks((sets + kBlock - 1) / kBlock, resolve_threads(threads), [&]() {
    return [&, signature = std::vector<std::uint32_t>(minhash_.padded())](
               std::size_t block) mutable {
      for (std::size_t i = block * kBlock; i < std::min(sets, (block + 1) * kBlock); ++i) {
        const auto size = static_cast<std::size_t>(offsets[i + 1] - offsets[i]);
        minhash_.sign(values + offsets[i], size, signature.data());
        minhash_.band_keys(signature.data(), keys + i * minhash_.settings().bands);
      }
    };
  });
}

}  // namespace vikhr
