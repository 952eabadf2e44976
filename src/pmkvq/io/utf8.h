// UTF-8 validity of bytes from outside.
#pragma once

#include <cstddef>
#include <string_view>

namespace pmkvq {

// Length in bytes of the longest prefix of `text` that is whole, valid UTF-8 (Unicode 15, table
// 3-7: no overlong forms, no surrogates, nothing above U+10FFFF). text.size() when all is valid.
size_t ValidUtf8Prefix(std::string_view text);

}  // namespace pmkvq
