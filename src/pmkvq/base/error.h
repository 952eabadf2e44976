// Errors about the outside world: bad files, bad requests, no memory.
//
// Three mechanisms, never mixed:
//   caller bug               -> PMKVQ_CHECK (base/check.h), aborts
//   outside world            -> throw one of the classes below
//   expected on a hot path   -> a [[nodiscard]] enum returned by the function
// Thrown errors are caught only in main() and in the engine's loop.
#pragma once

#include <stdexcept>
#include <string>

namespace pmkvq {

// Base of everything that the library throws on purpose. what() is one line:
// "[where] what, the value found, what was expected".
class Error : public std::runtime_error {
 public:
  Error(const std::string& where, const std::string& message)
      : std::runtime_error("[" + where + "] " + message) {}
};

// A value in a file, an option or a request is wrong.
class InvalidInput : public Error {
 public:
  using Error::Error;
};

// The operating system refused: open, read, write, rename, map, allocate.
class IoError : public Error {
 public:
  using Error::Error;
};

// Well-formed, but outside of what this program supports.
class Unsupported : public Error {
 public:
  using Error::Error;
};

// A compute device failed.
class DeviceError : public Error {
 public:
  using Error::Error;
};

// The user asked to stop (Ctrl-C). Thrown at points where everything finished so far is kept.
class Cancelled : public Error {
 public:
  using Error::Error;
};

}  // namespace pmkvq
