// Files with one JSON value a line (.jsonl).
#pragma once

#include <algorithm>
#include <cstdint>
#include <istream>
#include <memory>
#include <string>
#include <string_view>

#include "pmkvq/base/interrupt.h"
#include "pmkvq/io/file.h"

namespace pmkvq {

// Reads a file line by line, without holding the rest of it. For one thread.
class LineReader {
 public:
  // Throws IoError naming the path; InvalidInput for a Git LFS pointer.
  explicit LineReader(const std::string& path, uint64_t max_line_bytes = limits::kLineBytes);
  ~LineReader();
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  // The next line without its LF, and without a byte order mark before the first; false at the end
  // of the file. Throws IoError; InvalidInput for a line beyond the limit.
  bool Next(std::string* line);
  // The line that Next gave last ended in LF: nobody is writing it any more.
  bool whole() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// The next line of a stream without its LF, as std::getline, but for a limit: false at the end, or
// where reading fails. Throws InvalidInput "[where] ..." for a line beyond the limit. For streams
// that someone may be typing into; files have LineReader.
bool ReadLine(std::istream& stream, const std::string& where, std::string* line,
              uint64_t max_bytes = limits::kLineBytes);

// Lines of a regular file, 0 for a pipe: how much to reserve. At most what the file's size allows
// when a row takes `min_row_bytes`. Throws IoError.
size_t CountLines(const std::string& path, size_t min_row_bytes);

inline bool IsBlankLine(std::string_view line) {
  return line.find_first_not_of(" \t\r") == std::string_view::npos;
}

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
    if (IsBlankLine(line)) continue;
    parse(line, path + ":" + std::to_string(number), number);
    ++rows;
  }
  return rows;
}

// The same for a file, of which one line is in memory at a time. Throws what LineReader throws.
template <class Parse>
int64_t ForEachLine(const std::string& path, Parse parse) {
  LineReader reader(path);
  std::string line;
  int64_t rows = 0;
  for (int64_t number = 1; reader.Next(&line); ++number) {
    if (IsBlankLine(line)) continue;
    parse(std::string_view(line), path + ":" + std::to_string(number), number);
    ++rows;
  }
  return rows;
}

}  // namespace pmkvq
