// Encodes many texts on any number of threads, each of which borrows a worker.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "base/threads.hpp"
#include "bpe/id_buffer.hpp"
#include "text/texts.hpp"

namespace vikhr {

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

// Workers, kept for the next texts. A worker has begin(ids, ends), encode(text, document, policy) and finish().
template <typename Worker>
class WorkerPool {
 public:
  // The ids of all texts one after another; `offsets` gets texts.size() + 1 places. The same for any number of threads
  // (0: as many as the machine has). `make` makes a worker. TextError names the first bad text.
  template <typename Make>
  IdBuffer encode(const Texts& texts, InvalidUtf8 policy, unsigned threads, std::int64_t* offsets, const Make& make);

 private:
  // Documents are handed to threads in blocks of about this many bytes.
  static constexpr std::size_t kBlockBytes = 1 << 18;
  // Of text, for which memory is set aside before. Only what is used of it comes to exist.
  static constexpr std::size_t kBytesPerId = 4;

  template <typename Make>
  class Lease {
   public:
    Lease(WorkerPool& pool, const Make& make) : pool_(pool) {
      {
        const std::lock_guard<std::mutex> lock(pool_.mutex_);
        if (!pool_.idle_.empty()) {
          worker_ = std::move(pool_.idle_.back());
          pool_.idle_.pop_back();
        }
      }
      if (worker_ == nullptr) worker_ = make();
    }
    ~Lease() {
      const std::lock_guard<std::mutex> lock(pool_.mutex_);
      try {
        pool_.idle_.push_back(std::move(worker_));
      } catch (const std::bad_alloc&) {  // then it is not kept
      }
    }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;

    Worker* operator->() { return worker_.get(); }

   private:
    WorkerPool& pool_;
    std::unique_ptr<Worker> worker_;
  };

  std::mutex mutex_;
  std::vector<std::unique_ptr<Worker>> idle_;
};

template <typename Worker>
template <typename Make>
IdBuffer WorkerPool<Worker>::encode(const Texts& texts, InvalidUtf8 policy, unsigned threads, std::int64_t* offsets,
                                    const Make& make) {
  threads = resolve_threads(threads);
  // One thread fills one buffer.
  const std::vector<std::size_t> starts = threads == 1
                                              ? std::vector<std::size_t>{0, texts.size()}
                                              : cut_in_blocks(texts, kBlockBytes);
  offsets[0] = 0;
  std::int64_t* ends = offsets + 1;
  const auto encode_block = [&](std::size_t block, IdBuffer& ids) {
    Lease<Make> worker(*this, make);
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

}  // namespace vikhr
