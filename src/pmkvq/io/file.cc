#include "pmkvq/io/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/base/descriptor.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/io/utf8.h"

namespace pmkvq {
namespace {

// Opens for reading; a pipe waits here for its writer. -1 with errno.
int OpenToRead(const std::string& path) {
  while (true) {
    const int opened = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (opened >= 0 || errno != EINTR) return opened;
    CancelPoint();
  }
}

// True when `path` is there and is neither a regular file nor a folder: renaming over a device
// would destroy it.
bool IsSpecialFile(const std::string& path) {
  struct stat info {};
  return stat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode) && !S_ISDIR(info.st_mode);
}

// The file itself where `path` is a symbolic link to one, so that the link survives a rename.
std::string FollowLink(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_symlink(path, error)) return path;
  const std::filesystem::path target = std::filesystem::weakly_canonical(path, error);
  return error ? path : target.string();
}

[[noreturn]] void FailTooLarge(const std::string& path, uint64_t max_bytes) {
  throw InvalidInput(
      path, fmt::format("file size: found more than {} bytes, expected at most that", max_bytes));
}

std::string FolderOf(const std::string& path) {
  const std::string folder = std::filesystem::path(path).parent_path().string();
  return folder.empty() ? "." : folder;
}

}  // namespace

void RefuseLfsPointer(std::string_view content, const std::string& path) {
  constexpr size_t kMaxPointerBytes = 1024;  // By the specification of the pointer.
  if (content.size() < kMaxPointerBytes &&
      content.starts_with("version https://git-lfs.github.com/spec/")) {
    throw InvalidInput(path,
                       "found a Git LFS pointer, expected the file that it stands for: run "
                       "git lfs pull in its repository");
  }
}

MappedFile MappedFile::Open(const std::string& path) {
  const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) throw SystemError(path, "open");
  struct stat info {};
  if (fstat(file.get(), &info) != 0) throw SystemError(path, "stat");
  if (!S_ISREG(info.st_mode)) throw IoError(path, "cannot map: not a regular file");
  MappedFile mapped;
  mapped.size_ = static_cast<size_t>(info.st_size);
  if (mapped.size_ == 0) return mapped;
  void* memory = mmap(nullptr, mapped.size_, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (memory == MAP_FAILED) {
    mapped.size_ = 0;
    throw SystemError(path, "map");
  }
  mapped.data_ = static_cast<const std::byte*>(memory);
  RefuseLfsPointer({static_cast<const char*>(memory), mapped.size_}, path);
  return mapped;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::DropPages(const std::byte* begin, size_t num_bytes) const {
  const std::less<const std::byte*> before;  // Defined for pointers to different objects, too.
  if (before(begin, data_) || before(data_ + size_, begin + num_bytes)) return;
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const auto offset = static_cast<size_t>(begin - data_);
  const size_t first = (offset + page - 1) / page * page;
  const size_t last = (offset + num_bytes) / page * page;
  // A refusal only keeps memory in use.
  if (first < last) madvise(const_cast<std::byte*>(data_) + first, last - first, MADV_DONTNEED);
}

std::string ReadFile(const std::string& path, uint64_t max_bytes) {
  const Descriptor file(OpenToRead(path));
  if (file.get() < 0) throw SystemError(path, "open");
  constexpr size_t kChunkBytes = 1 << 20;
  constexpr size_t kMostBytesAtOnce = size_t{16} << 20;  // Between CancelPoints.
  std::string content;
  size_t used = 0;
  // The size that stat reports is a hint only: pipes and /proc have none.
  struct stat info {};
  if (fstat(file.get(), &info) == 0 && S_ISREG(info.st_mode)) {
    if (static_cast<uint64_t>(info.st_size) > max_bytes) FailTooLarge(path, max_bytes);
    content.resize(static_cast<size_t>(info.st_size) + 1);
  }
  while (true) {
    CancelPoint();
    if (used == content.size()) content.resize(used + std::max(kChunkBytes, used));
    const ssize_t got =
        read(file.get(), content.data() + used, std::min(content.size() - used, kMostBytesAtOnce));
    if (got < 0) {
      if (errno == EINTR) continue;
      throw SystemError(path, "read");
    }
    if (got == 0) break;
    used += static_cast<size_t>(got);
    if (used > max_bytes) FailTooLarge(path, max_bytes);
  }
  content.resize(used);
  RefuseLfsPointer(content, path);
  return content;
}

std::string PlainText(std::string content, const std::string& source) {
  constexpr std::string_view kUtf8Mark = "\xef\xbb\xbf";
  const std::string_view text = content;
  if (text.starts_with("\xff\xfe") || text.starts_with("\xfe\xff") ||
      text.starts_with(std::string_view("\0\0\xfe\xff", 4))) {
    throw InvalidInput(source, "text: found UTF-16 or UTF-32, expected UTF-8: convert it first");
  }
  CheckUtf8(text, source);
  // Half of the bytes of ASCII in UTF-16 without a mark are NUL.
  if (text.size() >= 2 && (text[0] == '\0' || text[1] == '\0')) {
    throw InvalidInput(source, "text: found NUL bytes as in UTF-16, expected UTF-8: convert it");
  }
  if (content.ends_with('\n')) {
    content.pop_back();
    if (content.ends_with('\r')) content.pop_back();
  } else if (content.ends_with('\r')) {
    content.pop_back();
  }
  if (content.starts_with(kUtf8Mark)) content.erase(0, kUtf8Mark.size());
  return content;
}

std::string PlainTextFile(const std::string& path) { return PlainText(ReadFile(path), path); }

void WriteFileAtomically(const std::string& path, std::string_view content) {
  if (path == "-") {
    std::fflush(stdout);  // What the program printed before stays before.
    if (!WriteAll(STDOUT_FILENO, content)) throw SystemError("standard output", "write");
    return;
  }
  AtomicFileWriter writer(path);
  writer.Append(content.data(), content.size());
  writer.Commit();
}

std::string TemporaryPath(const std::string& path) {
  return fmt::format("{}.tmp-{}", FollowLink(path), getpid());
}

void CommitFile(const std::string& temporary, const std::string& path) {
  const auto fail = [&](const char* action) {
    const IoError error = SystemError(path, action);
    unlink(temporary.c_str());
    throw error;
  };
  {
    const Descriptor file(open(temporary.c_str(), O_RDONLY | O_CLOEXEC));
    if (file.get() < 0) fail("open its temporary file");
    if (fsync(file.get()) != 0) fail("flush to disk");
  }
  if (IsSpecialFile(path)) {
    errno = EEXIST;
    fail("replace a device or pipe");
  }
  const std::string target = FollowLink(path);
  if (rename(temporary.c_str(), target.c_str()) != 0) fail("rename its temporary file");
  // Makes the new name durable; not every file system can, and the content is safe already.
  const Descriptor folder(open(FolderOf(target).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (folder.get() >= 0) (void)fsync(folder.get());
}

AtomicFileWriter::AtomicFileWriter(const std::string& path) : path_(path) {
  PMKVQ_CHECK_MSG(path != "-", "standard output is not a file");
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) throw IoError(path, "cannot write: is a folder");
  if (IsSpecialFile(path)) {
    descriptor_ = open(path.c_str(), O_WRONLY | O_CLOEXEC);
  } else {
    temporary_ = TemporaryPath(path);
    descriptor_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  }
  if (descriptor_ < 0) throw SystemError(path, "write");
}

AtomicFileWriter::~AtomicFileWriter() {
  if (descriptor_ < 0) return;
  close(descriptor_);
  if (!temporary_.empty()) unlink(temporary_.c_str());
}

void AtomicFileWriter::Append(const void* bytes, size_t num_bytes) {
  PMKVQ_CHECK_MSG(descriptor_ >= 0, "Append after Commit");
  if (!WriteAll(descriptor_, {static_cast<const char*>(bytes), num_bytes})) {
    throw SystemError(path_, "write");
  }
}

void AtomicFileWriter::Commit() {
  PMKVQ_CHECK_MSG(descriptor_ >= 0, "Commit twice");
  const int closed = close(std::exchange(descriptor_, -1));
  if (closed != 0) {
    const IoError error = SystemError(path_, "write");
    if (!temporary_.empty()) unlink(temporary_.c_str());
    throw error;
  }
  if (!temporary_.empty()) CommitFile(temporary_, path_);
}

bool FileExists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

std::string JoinPath(const std::string& folder, const std::string& name) {
  if (folder.empty()) return name;
  return folder.back() == '/' ? folder + name : folder + "/" + name;
}

}  // namespace pmkvq
