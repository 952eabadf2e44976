// Whole files: map, read, and replace atomically.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "pmkvq/io/limits.h"

namespace pmkvq {

// A read-only memory mapping. Move-only; unmapped on destruction.
class MappedFile {
 public:
  // Throws IoError naming the path and the system's reason, InvalidInput for a Git LFS pointer. An
  // empty file gives size 0.
  static MappedFile Open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }

  // Gives the memory of whole pages within [begin, begin + num_bytes) back to the system; reading
  // them again reads the file. Bytes outside of the mapping are left alone.
  void DropPages(const std::byte* begin, size_t num_bytes) const;

 private:
  MappedFile() = default;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// A repository that was cloned without Git LFS holds small text files in place of its large ones.
// Throws InvalidInput naming `path` when `content`, the beginning of a file, is one.
void RefuseLfsPointer(std::string_view content, const std::string& path);

// Throws IoError naming the path; InvalidInput for more than `max_bytes`, and for a Git LFS
// pointer.
std::string ReadFile(const std::string& path, uint64_t max_bytes = limits::kFileBytes);

// A prompt or another text that a person wrote, as the model is to see it: without a byte order
// mark at the start and without the one line break at the end, which may be LF, CRLF or CR (editors
// add them). Throws InvalidInput naming `source` for UTF-16 and UTF-32, and for bytes that are not
// UTF-8. PlainTextFile reads a file first (errors of ReadFile).
std::string PlainText(std::string content, const std::string& source);
std::string PlainTextFile(const std::string& path);

// Writes to a temporary file in the same folder, flushes it to disk, renames it over `path`.
// Either the old or the new content is there at any time; nothing half-written is left behind
// on error. "-" writes to standard output; a device or pipe (/dev/null) is written in place, and
// a symbolic link is followed. Throws IoError naming the path.
void WriteFileAtomically(const std::string& path, std::string_view content);

// The temporary name beside `path` that the writers of this project use: the same for every call
// with that path in one process.
std::string TemporaryPath(const std::string& path);
// Flushes `temporary` to disk and renames it over `path`. On error removes `temporary` and throws
// IoError naming the path.
void CommitFile(const std::string& temporary, const std::string& path);

// Writes a file piece by piece under its temporary name; Commit() puts it in place. Without a
// Commit the temporary file is removed on destruction. Not for "-".
class AtomicFileWriter {
 public:
  // Throws IoError naming `path` when the temporary file cannot be created.
  explicit AtomicFileWriter(const std::string& path);
  AtomicFileWriter(const AtomicFileWriter&) = delete;
  AtomicFileWriter& operator=(const AtomicFileWriter&) = delete;
  ~AtomicFileWriter();

  // Both throw IoError naming the path.
  void Append(const void* bytes, size_t num_bytes);
  void Commit();

 private:
  std::string path_;
  std::string temporary_;
  int descriptor_ = -1;
};

// A file or a folder of that name is there.
bool FileExists(const std::string& path);
// `folder`/`name`; `name` alone when `folder` is empty.
std::string JoinPath(const std::string& folder, const std::string& name);

}  // namespace pmkvq
