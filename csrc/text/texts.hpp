// Texts as they lie in the caller's memory, and how they are handed to threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace vikhr {

enum class InvalidUtf8 { raise, replace };

// A text that cannot be read.
class TextError : public std::runtime_error {
 public:
  TextError(std::size_t document, const std::string& what)
      : std::runtime_error("document " + std::to_string(document) + ": " + what) {}
};

// TextError.
void refuse_huge(std::size_t length, std::size_t document);
[[noreturn]] void refuse_invalid(std::size_t document, std::size_t byte);

// One text: UTF-8, or code points of 1, 2 or 4 bytes each, as Python keeps a str.
struct Text {
  const void* data;
  std::size_t length;  // bytes of UTF-8, or code points
  unsigned width = 0;  // of a code point; 0 for UTF-8

  // In UTF-8, about.
  std::size_t num_bytes() const { return width == 0 ? length : length * width; }
};

// Many of them: either separate, or one buffer of UTF-8 cut at offsets.
class Texts {
 public:
  explicit Texts(const std::vector<Text>& texts) : texts_(texts.data()), count_(texts.size()) {}
  // `offsets` has count + 1 ascending values within the buffer.
  Texts(const char* buffer, const std::int64_t* offsets, std::size_t count)
      : buffer_(buffer), offsets_(offsets), count_(count) {}

  std::size_t size() const { return count_; }
  // Of all texts in UTF-8, about.
  std::size_t num_bytes() const;
  Text operator[](std::size_t i) const {
    if (texts_ != nullptr) return texts_[i];
    return {buffer_ + offsets_[i], static_cast<std::size_t>(offsets_[i + 1] - offsets_[i])};
  }

 private:
  const Text* texts_ = nullptr;
  const char* buffer_ = nullptr;
  const std::int64_t* offsets_ = nullptr;
  std::size_t count_;
};

// Where blocks of about so many bytes of text start, and the end.
std::vector<std::size_t> cut_in_blocks(const Texts& texts, std::size_t block_bytes);

// Gives the UTF-8 of texts, of one at a time. A lone surrogate becomes three bytes that are not valid.
class Transcoder {
 public:
  std::string_view utf8(const Text& text);  // valid until the next call, and while the text is

  // Gives back the memory of a huge text.
  void shrink() { std::vector<char>().swap(buffer_); }

 private:
  template <typename CodeUnit>
  std::string_view transcode(const CodeUnit* units, std::size_t length);

  std::vector<char> buffer_;
};

}  // namespace vikhr
