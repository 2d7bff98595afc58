// Blocks of work on several threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <thread>
#include <vector>

namespace vikhr {

inline unsigned resolve_threads(unsigned threads) {
  return threads != 0 ? threads : std::max(1u, std::thread::hardware_concurrency());
}

// Every thread makes itself a worker and calls it with one block number after another. An
// exception is rethrown here: that of the first block that failed, before which all have run.
// The calling thread works too, and alone where the system has no more.
template <typename MakeWorker>
void run_blocks(std::size_t blocks, unsigned threads, const MakeWorker& make_worker) {
  std::vector<std::exception_ptr> errors(blocks);
  std::atomic<std::size_t> next{0};
  std::atomic<std::size_t> first_failed{blocks};
  const auto run = [&]() {
    std::size_t block = next++;
    if (block >= blocks) return;
    try {
      auto worker = make_worker();
      for (; block < first_failed; block = next++) worker(block);
    } catch (...) {
      errors[block] = std::current_exception();
      std::size_t failed = first_failed;
      while (block < failed && !first_failed.compare_exchange_weak(failed, block)) {
      }
    }
  };
  std::vector<std::thread> others;
  const std::size_t count = std::min<std::size_t>(threads, blocks);
  others.reserve(count);
  try {
    while (others.size() + 1 < count) others.emplace_back(run);
  } catch (const std::exception&) {
  }
  run();
  for (std::thread& thread : others) thread.join();
  for (const std::exception_ptr& error : errors) {
    if (error != nullptr) std::rethrow_exception(error);
  }
}

}  // namespace vikhr
