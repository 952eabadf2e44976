// File descriptors of the operating system, and errors of its calls.
#pragma once

#include <cerrno>
#include <string>
#include <string_view>
#include <utility>

#include "pmkvq/base/error.h"

namespace pmkvq {

// Owns a file descriptor and closes it; -1: none. Move-only.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int value) : value_(value) {}
  Descriptor(Descriptor&& other) noexcept : value_(other.Release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(value_, other.value_);
    return *this;
  }
  ~Descriptor() { Close(); }

  int get() const { return value_; }
  // Gives the descriptor to the caller, who closes it.
  int Release() { return std::exchange(value_, -1); }
  void Close();

 private:
  int value_ = -1;
};

// Writes all of `bytes` in as many calls as that takes. False with errno where a call failed: a
// part of them may have been written.
[[nodiscard]] bool WriteAll(int descriptor, std::string_view bytes);

// "[where] cannot ACTION: " and the system's text of `error`.
IoError SystemError(const std::string& where, const std::string& action, int error = errno);

}  // namespace pmkvq
