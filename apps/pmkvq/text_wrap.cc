#include "text_wrap.h"

#include <algorithm>

namespace pmkvq::cli {

std::string Wrap(const std::string& text, size_t columns, size_t indent, size_t used) {
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

}  // namespace pmkvq::cli
