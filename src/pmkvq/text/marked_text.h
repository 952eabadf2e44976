// Text that knows which of its bytes a user wrote.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace pmkvq {

// The bytes [begin, end) of a text; begin < end.
struct ByteRange {
  size_t begin = 0;
  size_t end = 0;

  bool operator==(const ByteRange&) const = default;
};

// A prompt as a chat template wrote it. What lies in `input` came from messages; the rest is text
// of the template, whose special tokens are meant.
struct MarkedText {
  std::string text;
  std::vector<ByteRange> input;  // Ascending, disjoint, and inside of the text.
};

}  // namespace pmkvq
