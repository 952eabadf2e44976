// Whole files: map, read, and replace atomically.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace pmkvq {

// A read-only memory mapping. Move-only; unmapped on destruction.
class MappedFile {
 public:
  // Throws IoError naming the path and the system's reason. An empty file gives size 0.
  static MappedFile Open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  MappedFile() = default;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Throws IoError naming the path.
std::string ReadFile(const std::string& path);

// Writes to a temporary file in the same folder, flushes it to disk, renames it over `path`.
// Either the old or the new content is there at any time; nothing half-written is left behind
// on error. "-" writes to standard output. Throws IoError naming the path.
void WriteFileAtomically(const std::string& path, std::string_view content);

// The temporary name beside `path` that the writers of this project use.
std::string TemporaryPath(const std::string& path);
// Flushes `temporary` to disk and renames it over `path`. Throws IoError.
void CommitFile(const std::string& temporary, const std::string& path);

bool FileExists(const std::string& path);
std::string JoinPath(const std::string& folder, const std::string& name);

}  // namespace pmkvq
