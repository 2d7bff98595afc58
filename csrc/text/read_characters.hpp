// A text as folded letters and separators, one character after another.
#pragma once

#include <cstddef>
#include <string_view>

#include "text/characters.hpp"
#include "text/texts.hpp"

namespace vikhr {

// Where a text comes from, for messages, and what to do where it is not valid UTF-8.
struct TextPlace {
  std::size_t document;
  std::size_t offset;  // of the text's first byte in the document
  InvalidUtf8 policy;
};

// Calls sink.letter(folded), sink.replace_letter(folded) for a letter that a mark after it has
// changed, and sink.separator() at least once between words. TextError on invalid UTF-8 unless it
// is replaced: U+FFFD separates words.
template <typename Sink>
void read_characters(std::string_view text, const TextPlace& place, Sink& sink) {
  const CharacterTable& table = CharacterTable::instance();
  const CharacterTable::ShortForms& forms = table.short_forms();
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  CodePoint last = 0;  // the letter before, 0 after a separator
  for (std::size_t at = 0; at < text.size();) {
    const unsigned lead = byte(at);
    CodePoint form = CharacterTable::kSpecial;
    unsigned length = 1;
    if (lead < 0x80) {
      form = forms[lead];
    } else if (lead - 0xC2 < 0xE0 - 0xC2 && at + 1 < text.size() &&
               (byte(at + 1) & 0xC0) == 0x80) {
      form = forms[(lead & 0x1F) << 6 | (byte(at + 1) & 0x3F)];
      length = 2;
    }
    if (form == CharacterTable::kSpecial) {
      const Character character = decode_character(text.substr(at));
      if (character.length == 0 && place.policy == InvalidUtf8::raise) {
        refuse_invalid(place.document, place.offset + at);
      }
      length = character.length == 0 ? 1 : character.length;
      const CodePoint c = character.code_point;  // 0, a separator, where nothing valid starts
      const CharacterKind kind = table.kind(c);
      at += length;
      if (kind == CharacterKind::ignored || (kind == CharacterKind::mark && last == 0)) continue;
      const CodePoint composed = kind == CharacterKind::mark ? compose(last, c) : 0;
      if (composed != 0) {
        sink.replace_letter(composed);
        last = composed;
        continue;
      }
      form = kind == CharacterKind::separator ? 0 : table.fold(c);
    } else {
      at += length;
    }
    last = form;
    if (form != 0) {
      sink.letter(form);
    } else {
      sink.separator();
    }
  }
}

}  // namespace vikhr
