#include "bpe/bpe.hpp"

#include <cstring>
#include <utility>

#include "base/threads.hpp"
#include "bpe/text_encoder.hpp"

namespace vikhr {
namespace {

// Documents are handed to threads in blocks of about this many bytes.
constexpr std::size_t kBlockBytes = 1 << 18;
// Of text, for which memory is set aside before. Only what is used of it comes to exist.
constexpr std::size_t kBytesPerId = 4;

bool starts_with_space_symbol(std::string_view piece) {
  return piece.substr(0, kSpaceSymbolUtf8.size()) == kSpaceSymbolUtf8;
}

// The ids of blocks that end in any order, one after another. A block is copied while the caches
// still have it, and its buffer is used again.
class OrderedIds {
 public:
  // They go to `all`. `ends`, where each document ends in its block, become places there.
  OrderedIds(const std::vector<std::size_t>& starts, std::int64_t* ends, IdBuffer& all)
      : starts_(starts), ends_(ends), all_(all), waiting_(starts.size() - 1) {}

  IdBuffer empty_buffer() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (empty_.empty()) return {};
    IdBuffer buffer = std::move(empty_.back());
    empty_.pop_back();
    return buffer;
  }

  void put(std::size_t block, IdBuffer ids) {
    const std::lock_guard<std::mutex> lock(mutex_);
    waiting_[block] = std::move(ids);
    is_there_[block] = true;
    for (; next_ < waiting_.size() && is_there_[next_]; ++next_) append(next_);
  }

 private:
  void append(std::size_t block) {
    const auto place = static_cast<std::int64_t>(all_.size());
    for (std::size_t i = starts_[block]; i < starts_[block + 1]; ++i) ends_[i] += place;
    IdBuffer ids = std::move(waiting_[block]);
    all_.append(ids.data(), ids.size());
    ids.clear();
    empty_.push_back(std::move(ids));
  }

  const std::vector<std::size_t>& starts_;
  std::int64_t* ends_;
  IdBuffer& all_;
  std::vector<IdBuffer> waiting_;
  std::vector<bool> is_there_ = std::vector<bool>(waiting_.size());
  std::size_t next_ = 0;
  std::vector<IdBuffer> empty_;
  std::mutex mutex_;
};

}  // namespace

// Borrows an idle worker, or makes one.
class BpeEncoder::Lease {
 public:
  explicit Lease(const BpeEncoder& encoder) : encoder_(encoder) {
    {
      const std::lock_guard<std::mutex> lock(encoder_.mutex_);
      if (!encoder_.idle_.empty()) {
        worker_ = std::move(encoder_.idle_.back());
        encoder_.idle_.pop_back();
      }
    }
    if (worker_ == nullptr) {
      worker_ = std::make_unique<Worker>(encoder_.vocabulary_, encoder_.unused_, encoder_.cache_);
    }
  }
  ~Lease() {
    const std::lock_guard<std::mutex> lock(encoder_.mutex_);
    try {
      encoder_.idle_.push_back(std::move(worker_));
    } catch (const std::bad_alloc&) {  // then it is not kept
    }
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  Worker* operator->() { return worker_.get(); }

 private:
  const BpeEncoder& encoder_;
  std::unique_ptr<Worker> worker_;
};

BpeEncoder::BpeEncoder(std::string_view model_file) : vocabulary_(parse_model(model_file)) {
  surfaces_.reserve(static_cast<std::size_t>(vocabulary_.size()));
  for (Id id = 0; id < vocabulary_.size(); ++id) {
    std::string surface;
    append_with_spaces(vocabulary_.piece(id).text, surface);
    surfaces_.push_back(std::move(surface));
  }
  split_unused();
}

void BpeEncoder::split_unused() {
  Merger merger(vocabulary_);
  std::vector<Symbol> symbols;
  for (Id id = 0; id < vocabulary_.size(); ++id) {
    const Piece& piece = vocabulary_.piece(id);
    if (piece.type != PieceType::unused) continue;
    if (decode_valid_character(piece.text.data()).length == piece.text.size()) continue;
    const Merger::Pair last = merger.merge(piece.text, symbols);
    if (symbols.size() == 1) unused_.insert(static_cast<std::uint64_t>(id), last);
  }
}

BpeEncoder::~BpeEncoder() = default;

IdBuffer BpeEncoder::encode(const Texts& texts, InvalidUtf8 policy, unsigned threads,
                            std::int64_t* offsets) const {
  threads = resolve_threads(threads);
  // One thread fills one buffer.
  const std::vector<std::size_t> starts = threads == 1
                                              ? std::vector<std::size_t>{0, texts.size()}
                                              : cut_in_blocks(texts, kBlockBytes);
  offsets[0] = 0;
  std::int64_t* ends = offsets + 1;
  const auto encode_block = [&](std::size_t block, IdBuffer& ids) {
    Lease worker(*this);
    worker->begin(ids, ends);
    for (std::size_t i = starts[block]; i < starts[block + 1]; ++i) {
      worker->encode(texts[i], i, policy);
    }
    worker->finish();
  };
  IdBuffer all;
  all.reserve(texts.num_bytes() / kBytesPerId);
  if (starts.size() == 2) {
    encode_block(0, all);
  } else {
    OrderedIds ordered(starts, ends, all);
    run_blocks(starts.size() - 1, threads, [&]() {
      return [&](std::size_t block) {
        IdBuffer ids = ordered.empty_buffer();
        encode_block(block, ids);
        ordered.put(block, std::move(ids));
      };
    });
  }
  all.shrink_to_fit();
  return all;
}

void BpeEncoder::decode(const std::int64_t* ids, std::size_t count, std::string& text) const {
  const Model& model = vocabulary_.model();
  const bool drops_prefix = model.add_dummy_prefix || model.remove_extra_whitespaces;
  const std::size_t start = text.size();
  bool may_drop = true;
  std::string bytes;
  for (std::size_t i = 0; i < count; ++i) {
    if (ids[i] < 0 || ids[i] >= vocabulary_.size()) {
      throw IdError("id " + std::to_string(ids[i]) + " at position " + std::to_string(i) +
                    " is not one of the vocabulary's " + std::to_string(vocabulary_.size()));
    }
    const Id id = static_cast<Id>(ids[i]);
    const Piece& piece = vocabulary_.piece(id);
    if (piece.type == PieceType::byte) {
      bytes.push_back(static_cast<char>(vocabulary_.byte_value(id)));
      continue;
    }
    append_repaired(bytes, text);
    bytes.clear();
    if (text.size() > start) may_drop = false;
    if (piece.type == PieceType::control) continue;
    const bool drops = may_drop && drops_prefix && starts_with_space_symbol(piece.text);
    if (piece.type == PieceType::unknown) {
      text.append(model.unknown_surface);
    } else {
      text.append(surfaces_[static_cast<std::size_t>(id)], drops ? 1 : 0);
    }
    if ((drops && !model.remove_extra_whitespaces) || text.size() > start) may_drop = false;
  }
  append_repaired(bytes, text);
}

}  // namespace vikhr
