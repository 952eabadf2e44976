// Text in lines of a width.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace pmkvq {

// `text` in lines of `columns` bytes, broken at blanks; all but the first begin with `indent`
// blanks. `used` bytes of the first line are taken. A line break of the text is kept, and a word
// that is longer than a line is not broken.
std::string WrapWords(std::string_view text, size_t columns, size_t indent = 0, size_t used = 0);

// The same, broken behind commas and semicolons where that suffices: "a b, c d; e f" keeps its
// parts together.
std::string WrapList(std::string_view text, size_t columns, size_t indent = 0);

}  // namespace pmkvq
