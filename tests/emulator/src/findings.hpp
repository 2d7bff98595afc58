// What a launch did that it may not do: one finding for a kind and an instruction, however often it
// happens.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "kernel.hpp"

namespace ptx {

struct Finding {
  std::string kind, detail;  // the first time's
  int ptx_line;
  std::string source, text;
  u64 times;
};

class Findings {
 public:
  void add(const std::string& kind, const Instruction& at, const std::string& detail) {
    const auto [place, is_new] = index_.try_emplace({kind, at.ptx_line}, list_.size());
    if (is_new) list_.push_back({kind, detail, at.ptx_line, at.source, at.text, 0});
    ++list_[place->second].times;
  }
  const std::vector<Finding>& list() const { return list_; }

 private:
  std::vector<Finding> list_;
  std::map<std::pair<std::string, int>, std::size_t> index_;
};

// As printf; `long` for 64 bits.
std::string format(const char* pattern, ...) __attribute__((format(printf, 1, 2)));

}  // namespace ptx
