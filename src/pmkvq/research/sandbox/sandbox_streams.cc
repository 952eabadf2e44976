#include "pmkvq/research/sandbox/sandbox_streams.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "pmkvq/base/error.h"
#include "pmkvq/research/sandbox/sandbox_child.h"

namespace pmkvq {
namespace {

constexpr size_t kKeptErrorBytes = 4096;

}  // namespace

void FailSandbox(const std::string& what, int error) { throw SystemError("sandbox", what, error); }

Descriptor MoveUp(int opened) {
  const Descriptor low(opened);
  Descriptor high(opened < 0 ? -1 : fcntl(opened, F_DUPFD_CLOEXEC, kFirstOwnDescriptor));
  if (high.get() < 0) FailSandbox("open a stream");
  return high;
}

Pipe MakePipe() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) FailSandbox("open a pipe");
  Descriptor low_write_end(ends[1]);
  Pipe made;
  made.read_end = MoveUp(ends[0]);
  made.write_end = MoveUp(low_write_end.Release());
  return made;
}

Descriptor MakeInput(std::string_view input) {
  Descriptor file = MoveUp(memfd_create("input", MFD_CLOEXEC));
  if (!WriteAll(file.get(), input)) FailSandbox("write the input");
  if (lseek(file.get(), 0, SEEK_SET) != 0) FailSandbox("rewind the input");
  return file;
}

std::string ReadUntilEnd(int descriptor) {
  std::string text;
  std::array<char, 4096> buffer;
  while (true) {
    const ssize_t count = read(descriptor, buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return text;
    text.append(buffer.data(), static_cast<size_t>(count));
  }
}

void Stream::Read() {
  std::array<char, 65536> buffer;
  const ssize_t count = read(source.get(), buffer.data(), buffer.size());
  if (count < 0 && (errno == EINTR || errno == EAGAIN)) return;
  if (count <= 0) return source.Close();
  text.append(buffer.data(), static_cast<size_t>(count));
}

void Streams::Read(int milliseconds) {
  std::array<pollfd, 3> waiting = {};
  const std::array<Stream*, 3> all = {&output, &errors, &report};
  for (size_t i = 0; i < all.size(); ++i) waiting[i] = {all[i]->source.get(), POLLIN, 0};
  if (poll(waiting.data(), waiting.size(), milliseconds) <= 0) return;
  for (size_t i = 0; i < all.size(); ++i) {
    if (waiting[i].revents != 0) all[i]->Read();
  }
  if (errors.text.size() > kKeptErrorBytes) {
    errors.text.erase(0, errors.text.size() - kKeptErrorBytes);
  }
}

}  // namespace pmkvq
