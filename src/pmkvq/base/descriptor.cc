#include "pmkvq/base/descriptor.h"

#include <unistd.h>

#include <cstring>

namespace pmkvq {

void Descriptor::Close() {
  if (value_ >= 0) close(value_);
  value_ = -1;
}

bool WriteAll(int descriptor, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = write(descriptor, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return false;
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return true;
}

IoError SystemError(const std::string& where, const std::string& action, int error) {
  return {where, "cannot " + action + ": " + std::strerror(error)};
}

}  // namespace pmkvq
