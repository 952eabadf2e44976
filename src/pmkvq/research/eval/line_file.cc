#include "pmkvq/research/eval/line_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "pmkvq/io/file.h"
#include "pmkvq/io/limits.h"

namespace pmkvq {

IoError SystemError(const std::string& path, const char* action) {
  return IoError(path, fmt::format("cannot {}: {}", action, std::strerror(errno)));
}

Descriptor::Descriptor(Descriptor&& other) noexcept : value_(std::exchange(other.value_, -1)) {}

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  std::swap(value_, other.value_);
  return *this;
}

Descriptor::~Descriptor() {
  if (value_ >= 0) close(value_);
}

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
  for (size_t done = 0; done < line.size();) {
    const ssize_t written = write(file_.get(), line.data() + done, line.size() - done);
    if (written >= 0) {
      done += static_cast<size_t>(written);
    } else if (errno != EINTR) {
      const IoError error = SystemError(path_, "write");
      // Where even this fails, the part of a line is dropped when the file is opened again.
      [[maybe_unused]] const int ignored = ftruncate(file_.get(), size_);
      throw error;
    }
  }
  size_ += static_cast<off_t>(line.size());
}

void LineFile::Flush() { fsync(file_.get()); }

}  // namespace pmkvq
