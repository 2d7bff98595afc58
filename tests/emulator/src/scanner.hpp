// PTX text, cut into what ends with a semicolon, a colon or a brace; comments left out.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

namespace ptx {

class Scanner {
 public:
  explicit Scanner(std::string text) : text_(std::move(text)) {}

  // To what comes next; .loc is taken note of on the way. False at the end.
  bool advance();
  bool looks_at(const std::string& word) const {
    return text_.compare(at_, word.size(), word) == 0;
  }
  bool take(char one);
  // Up to a character outside of brackets, which is passed over.
  std::string until(char stop);
  void skip_line();
  // A label's name, where the next thing is one; else empty.
  std::string label();
  // The start of what comes next, of one line.
  std::string excerpt() const {
    return text_.substr(at_, std::min(text_.find('\n', at_) - at_, kExcerpt));
  }

  int line() const { return line_; }
  const std::string& source() const { return source_; }

 private:
  static constexpr std::size_t kExcerpt = 60;
  bool skip_comment();
  void note_source();

  std::string text_;
  std::size_t at_ = 0;
  int line_ = 1;
  std::string source_;
};

std::string trimmed(const std::string& text);
bool starts_with(const std::string& text, const char* start);
// The parts between separators outside of brackets, trimmed.
std::vector<std::string> split(const std::string& text, char separator);

}  // namespace ptx
