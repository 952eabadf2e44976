#include "pmkvq/io/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

namespace pmkvq {

std::optional<FileLock> FileLock::Try(const std::string& path, Kind kind) {
  while (true) {
    Descriptor file(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666));
    if (file.get() < 0) throw SystemError(path, "open");
    if (flock(file.get(), (kind == Kind::kShared ? LOCK_SH : LOCK_EX) | LOCK_NB) != 0) {
      if (errno == EWOULDBLOCK) return std::nullopt;
      throw SystemError(path, "lock");
    }
    // The holder before may have removed the file between these two calls.
    struct stat held = {}, named = {};
    if (fstat(file.get(), &held) == 0 && stat(path.c_str(), &named) == 0 &&
        held.st_dev == named.st_dev && held.st_ino == named.st_ino) {
      return FileLock(path, std::move(file));
    }
  }
}

void FileLock::RemoveFile() {
  if (is_held()) unlink(path_.c_str());
  Release();
}

}  // namespace pmkvq
