// Descriptors, pipes and the streams of a sandboxed program.
#pragma once

#include <cerrno>
#include <cstddef>
#include <string>
#include <string_view>

#include "pmkvq/base/descriptor.h"

namespace pmkvq {

// Throws IoError: "[sandbox] cannot <what>: <the system's reason>".
[[noreturn]] void FailSandbox(const std::string& what, int error = errno);

// `opened` as a descriptor of at least kFirstOwnDescriptor, out of the way of the child's 0 to 5,
// closed by exec. Throws IoError, also for -1 (opening failed), by errno.
Descriptor MoveUp(int opened);

struct Pipe {
  Descriptor read_end;
  Descriptor write_end;
};
Pipe MakePipe();  // Moved up. Throws IoError.

// What is left to read. An error ends it.
std::string ReadUntilEnd(int descriptor);
// A file in memory with that content, moved up, so that no reader has to keep up.
Descriptor MakeInput(std::string_view input);

// One of the program's streams, read to its end.
struct Stream {
  Descriptor source;
  std::string text;

  bool open() const { return source.get() >= 0; }
  void Read();  // Appends the bytes that are there; waits where there are none.
};

struct Streams {
  Stream output;
  Stream errors;  // Only the last 4 KiB are kept.
  Stream report;

  bool AnyOpen() const { return output.open() || errors.open() || report.open(); }
  // Waits until there is something to read, at most `milliseconds`, and reads it.
  void Read(int milliseconds);
};

}  // namespace pmkvq
