// Text in lines of a terminal's width.
#pragma once

#include <cstddef>
#include <string>

namespace pmkvq::cli {

// `text` in lines of `columns` characters, broken at blanks; all but the first begin with `indent`
// blanks. `used` characters of the first line are taken. A line break of the text is kept. A word
// that is longer than a line stands alone.
std::string Wrap(const std::string& text, size_t columns, size_t indent, size_t used);

}  // namespace pmkvq::cli
