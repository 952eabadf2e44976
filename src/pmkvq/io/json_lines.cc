#include "pmkvq/io/json_lines.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <vector>

#include "pmkvq/base/descriptor.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"

namespace pmkvq {
namespace {

constexpr size_t kBlockBytes = size_t{1} << 18;

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, CloseFile>;

File OpenFile(const std::string& path) {
  File file(std::fopen(path.c_str(), "rbe"));
  while (file == nullptr && errno == EINTR) {  // A pipe waits for its writer.
    CancelPoint();
    file.reset(std::fopen(path.c_str(), "rbe"));
  }
  if (file == nullptr) throw SystemError(path, "open");
  std::setvbuf(file.get(), nullptr, _IONBF, 0);  // Read in blocks of our own.
  return file;
}

size_t ReadBlock(std::FILE* file, const std::string& path, std::vector<char>* block) {
  while (true) {
    const size_t size = std::fread(block->data(), 1, block->size(), file);
    if (size > 0 || std::ferror(file) == 0) return size;
    if (errno != EINTR) throw SystemError(path, "read");
    CancelPoint();
    std::clearerr(file);
  }
}

}  // namespace

struct LineReader::Impl {
  Impl(const std::string& file_path, uint64_t max_bytes)
      : path(file_path), max_line_bytes(max_bytes), file(OpenFile(file_path)) {}

  std::string path;
  uint64_t max_line_bytes;
  File file;
  std::vector<char> block = std::vector<char>(kBlockBytes);
  std::string_view rest;  // Of the block.
  bool first = true;
  bool whole = false;
};

LineReader::LineReader(const std::string& path, uint64_t max_line_bytes)
    : impl_(new Impl(path, max_line_bytes)) {}
LineReader::~LineReader() = default;

bool LineReader::Next(std::string* line) {
  line->clear();
  bool any = false;
  while (true) {
    if (impl_->rest.empty()) {
      const size_t size = ReadBlock(impl_->file.get(), impl_->path, &impl_->block);
      if (size == 0) return any;
      impl_->rest = {impl_->block.data(), size};
      if (impl_->first) {
        impl_->first = false;
        RefuseLfsPointer(impl_->rest, impl_->path);
        if (impl_->rest.starts_with("\xef\xbb\xbf")) impl_->rest.remove_prefix(3);
      }
    }
    any = true;
    const size_t end = std::min(impl_->rest.find('\n'), impl_->rest.size());
    if (line->size() + end > impl_->max_line_bytes) {
      throw InvalidInput(impl_->path,
                         fmt::format("line: found more than {} bytes, expected at most that",
                                     impl_->max_line_bytes));
    }
    line->append(impl_->rest.substr(0, end));
    impl_->whole = end < impl_->rest.size();
    impl_->rest.remove_prefix(impl_->whole ? end + 1 : end);
    if (impl_->whole) return true;
  }
}

bool LineReader::whole() const { return impl_->whole; }

bool ReadLine(std::istream& stream, const std::string& where, std::string* line,
              uint64_t max_bytes) {
  line->clear();
  if (!stream.good()) return false;
  std::streambuf& buffer = *stream.rdbuf();
  for (;;) {
    const int c = buffer.sbumpc();
    if (c == std::char_traits<char>::eof()) {
      stream.setstate(line->empty() ? std::ios::eofbit | std::ios::failbit : std::ios::eofbit);
      return !line->empty();
    }
    if (c == '\n') return true;
    if (line->size() == max_bytes) {
      throw InvalidInput(where, fmt::format("found a line of more than {} bytes, expected at most "
                                            "that many",
                                            max_bytes));
    }
    line->push_back(static_cast<char>(c));
    if (line->size() % (size_t{1} << 20) == 0) CancelPoint();
  }
}

size_t CountLines(const std::string& path, size_t min_row_bytes) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) return 0;
  const File file = OpenFile(path);
  std::vector<char> block(kBlockBytes);
  size_t lines = 1;  // The last one may lack its LF.
  size_t bytes = 0;
  while (const size_t size = ReadBlock(file.get(), path, &block)) {
    bytes += size;
    lines += static_cast<size_t>(
        std::count(block.begin(), block.begin() + static_cast<std::ptrdiff_t>(size), '\n'));
  }
  return std::min(lines, bytes / min_row_bytes + 1);
}

}  // namespace pmkvq
