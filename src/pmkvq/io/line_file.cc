#include "pmkvq/io/line_file.h"

#include <fcntl.h>
#include <unistd.h>

#include "pmkvq/io/file.h"
#include "pmkvq/io/limits.h"

namespace pmkvq {

LineFile::LineFile(const std::string& path)
    : path_(path), file_(open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666)) {
  if (!is_open()) throw SystemError(path_, "open");
  const std::string content = ReadFile(path_, limits::kLogBytes);
  size_ = static_cast<off_t>(content.rfind('\n') + 1);  // 0 for none.
  if (size_ < static_cast<off_t>(content.size()) && ftruncate(file_.get(), size_) != 0) {
    throw SystemError(path_, "shorten");
  }
}

std::string LineFile::Read() const { return ReadFile(path_, limits::kLogBytes); }

void LineFile::Append(const std::string& line) {
  if (!WriteAll(file_.get(), line)) {
    const IoError error = SystemError(path_, "write");
    // Where even this fails, the part of a line is dropped when the file is opened again.
    [[maybe_unused]] const int ignored = ftruncate(file_.get(), size_);
    throw error;
  }
  size_ += static_cast<off_t>(line.size());
}

void LineFile::Flush() { fsync(file_.get()); }

}  // namespace pmkvq
