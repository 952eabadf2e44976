#include "pmkvq/base/wrap_text.h"

#include <algorithm>

namespace pmkvq {

std::string WrapWords(std::string_view text, size_t columns, size_t indent, size_t used) {
  std::string wrapped;
  size_t column = used;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find_first_of(" \n", begin), text.size());
    const size_t length = end - begin;
    const bool is_first = column == indent || (wrapped.empty() && column == used);
    if (!is_first && column + 1 + length > columns) {
      wrapped += '\n' + std::string(indent, ' ');
      column = indent;
    } else if (!is_first) {
      wrapped += ' ';
      ++column;
    }
    wrapped += text.substr(begin, length);
    column += length;
    if (end < text.size() && text[end] == '\n') {
      wrapped += '\n' + std::string(indent, ' ');
      column = indent;
    }
    begin = end + 1;
  }
  return wrapped;
}

std::string WrapList(std::string_view text, size_t columns, size_t indent) {
  std::string wrapped;
  size_t column = 0;
  for (size_t begin = 0; begin < text.size();) {
    size_t end = text.size();
    for (size_t at = begin; at + 1 < text.size(); ++at) {
      if ((text[at] == ',' || text[at] == ';') && text[at + 1] == ' ') {
        end = at + 1;
        break;
      }
    }
    const std::string_view part = text.substr(begin, end - begin);
    if (column > 0 && column + 1 + part.size() > columns) {
      wrapped += '\n' + std::string(indent, ' ');
      column = indent;
    } else if (column > 0) {
      wrapped += ' ';
      ++column;
    }
    const std::string words = WrapWords(part, columns, indent, column);
    const size_t last_line = words.rfind('\n');
    column = last_line == std::string::npos ? column + words.size() : words.size() - last_line - 1;
    wrapped += words;
    begin = end + 1;
  }
  return wrapped;
}

}  // namespace pmkvq
