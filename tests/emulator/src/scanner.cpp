#include "scanner.hpp"

#include <cctype>
#include <cstring>

namespace ptx {
namespace {

bool opens(char c) { return c == '{' || c == '[' || c == '('; }
bool closes(char c) { return c == '}' || c == ']' || c == ')'; }
bool is_space(char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; }
bool is_of_name(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '$' || c == '%';
}

}  // namespace

std::string trimmed(const std::string& text) {
  std::size_t first = 0, last = text.size();
  while (first < last && is_space(text[first])) ++first;
  while (last > first && is_space(text[last - 1])) --last;
  return text.substr(first, last - first);
}

bool starts_with(const std::string& text, const char* start) {
  return text.compare(0, std::strlen(start), start) == 0;
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::string part;
  int depth = 0;
  for (const char c : text) {
    depth += opens(c) - closes(c);
    if (c == separator && depth == 0) {
      parts.push_back(trimmed(part));
      part.clear();
    } else {
      part += c;
    }
  }
  if (!trimmed(part).empty()) parts.push_back(trimmed(part));
  return parts;
}

bool Scanner::skip_comment() {
  if (looks_at("//")) {
    while (at_ < text_.size() && text_[at_] != '\n') ++at_;
    return true;
  }
  if (!looks_at("/*")) return false;
  for (at_ += 2; at_ < text_.size() && !looks_at("*/"); ++at_) line_ += text_[at_] == '\n';
  at_ = std::min(at_ + 2, text_.size());
  return true;
}

void Scanner::skip_line() {
  while (at_ < text_.size() && text_[at_] != '\n') ++at_;
}

// .loc 1 54 12 // flash_attention.py:54:12 @[ caller.py:80:8 ]
void Scanner::note_source() {
  const std::size_t start = at_;
  skip_line();
  const std::string line = text_.substr(start, at_ - start);
  const std::size_t comment = line.find("//");
  source_ = trimmed(comment == std::string::npos ? line.substr(std::strlen(".loc"))
                                                 : line.substr(comment + 2));
}

bool Scanner::advance() {
  while (at_ < text_.size()) {
    if (is_space(text_[at_])) {
      line_ += text_[at_++] == '\n';
    } else if (looks_at(".loc\t") || looks_at(".loc ")) {
      note_source();
    } else if (!skip_comment()) {
      return true;
    }
  }
  return false;
}

bool Scanner::take(char one) {
  if (at_ >= text_.size() || text_[at_] != one) return false;
  ++at_;
  return true;
}

std::string Scanner::until(char stop) {
  std::string taken;
  int depth = 0;
  while (at_ < text_.size() && !(text_[at_] == stop && depth == 0)) {
    if (skip_comment()) continue;
    const char c = text_[at_++];
    depth += opens(c) - closes(c);
    line_ += c == '\n';
    taken += is_space(c) ? ' ' : c;
  }
  ++at_;
  return trimmed(taken);
}

std::string Scanner::label() {
  std::size_t end = at_;
  while (end < text_.size() && is_of_name(text_[end])) ++end;
  if (end == at_ || end >= text_.size() || text_[end] != ':' || text_[end + 1] == ':') return "";
  const std::string name = text_.substr(at_, end - at_);
  at_ = end + 1;
  return name;
}

}  // namespace ptx
