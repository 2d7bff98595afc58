// libFuzzer target for the deduplication index. A first byte under 128 begins a saved index, which gets a right checksum, so
// that the reader goes on: it is refused or works. Another begins texts: whatever their bytes, threads, batches,
// instruction sets and a way through a saved index change nothing.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "dedup/dedup_index.hpp"

namespace {

using namespace vikhr;

void require(bool condition) {
  if (!condition) std::abort();
}

std::string saved(DedupIndex& index) {
  std::string bytes;
  index.save([&](std::string_view piece) { bytes.append(piece); });
  return bytes;
}

std::vector<Text> given(const std::vector<std::string_view>& texts) {
  std::vector<Text> result;
  for (const std::string_view text : texts) result.push_back({text.data(), text.size()});
  return result;
}

void add(DedupIndex& index, const std::vector<std::string_view>& texts, unsigned threads) {
  const std::vector<Text> all = given(texts);
  index.add(Texts(all), InvalidUtf8::replace, threads);
}

void read_index(std::string_view bytes) {
  std::string file(bytes);
  const std::uint64_t checksum = index_checksum(file);
  file.append(reinterpret_cast<const char*>(&checksum), sizeof checksum);
  try {
    const std::unique_ptr<DedupIndex> index = DedupIndex::load(file, best_isa());
    require(saved(*index) == file);
    add(*index, {"a b c d e f g", "a b c d e f h", ""}, 1);
    require(index->clusters().size() == index->counts().texts);
  } catch (const IndexError&) {
  }
}

void read_texts(unsigned options, std::string_view bytes) {
  std::vector<std::string_view> texts;
  for (;;) {
    const std::size_t end = bytes.find('\n');
    texts.push_back(bytes.substr(0, end));
    if (end == std::string_view::npos) break;
    bytes.remove_prefix(end + 1);
  }
  const DedupSettings settings{
      {options & 1 ? ShingleUnit::word : ShingleUnit::character, 1 + (options >> 1 & 3)},
      {16, options & 8 ? 16u : 4u, options},
      options & 16 ? 0.5 : 0.8,
      options & 32 ? Clustering::star : Clustering::transitive};
  DedupIndex whole(settings, best_isa());
  add(whole, texts, 1);
  DedupIndex first(settings, Isa::scalar);
  const auto half = texts.begin() + static_cast<std::ptrdiff_t>(texts.size() / 2);
  add(first, {texts.begin(), half}, 2);
  const std::unique_ptr<DedupIndex> again = DedupIndex::load(saved(first), best_isa());
  add(*again, {half, texts.end()}, 2);
  require(again->clusters() == whole.clusters());
  require(again->counts().candidates == whole.counts().candidates);
  if (settings.clustering == Clustering::transitive) return;
  const std::vector<Text> all = given(texts);
  require(whole.match(Texts(all), InvalidUtf8::replace, 1) == whole.clusters());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  if (size == 0) return 0;
  if (data[0] < 128) {
    read_index(bytes);
  } else {
    read_texts(data[0] & 127, bytes.substr(1));
  }
  return 0;
}
