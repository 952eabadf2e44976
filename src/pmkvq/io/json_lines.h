// Files with one JSON value a line (.jsonl).
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>

#include "pmkvq/base/interrupt.h"
#include "pmkvq/io/file.h"

namespace pmkvq {

// Calls parse(line, "path:number", number) for every line of `content` that is not blank; lines
// count from 1. Returns the number of calls. Each line begins with a CancelPoint.
template <class Parse>
int64_t ForEachLineOf(std::string_view content, const std::string& path, Parse parse) {
  int64_t rows = 0;
  for (int64_t number = 1; !content.empty(); ++number) {
    CancelPoint();
    const size_t end = std::min(content.find('\n'), content.size());
    const std::string_view line = content.substr(0, end);
    content.remove_prefix(std::min(end + 1, content.size()));
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    parse(line, path + ":" + std::to_string(number), number);
    ++rows;
  }
  return rows;
}

// The same for a whole file. Throws IoError.
template <class Parse>
int64_t ForEachLine(const std::string& path, Parse parse) {
  return ForEachLineOf(ReadFile(path), path, parse);
}

}  // namespace pmkvq
