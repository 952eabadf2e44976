// GGUF files: one, or all parts of a split one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "pmkvq/io/gguf/gguf_header.h"

namespace pmkvq {

// Maps all files of a set; nothing is read but their headers. Move-only; tensors and values point
// into the mappings and stay valid while it lives. Immutable: any number of threads may use it.
class GgufSet {
 public:
  // `path`: a file, or the first part of a split one (NAME-00001-of-00003.gguf), whose other parts
  // lie beside it. Checks each file as ParseGgufHeader, and of split files the number of each part,
  // the sum of the tensors, and that no name is in two parts.
  // Throws IoError, InvalidInput and Unsupported naming the file; InvalidInput for a later part,
  // naming the first one.
  static GgufSet Open(const std::string& path);

  // The same of one file's bytes, under a name that errors can show.
  static GgufSet FromMemory(const std::string& name, std::vector<std::byte> bytes);

  GgufSet(GgufSet&&) noexcept;
  GgufSet& operator=(GgufSet&&) noexcept;
  ~GgufSet();

  const std::string& path() const;  // Of the first file.
  int64_t num_files() const;

  // Metadata, of the first file. A key that is not there gives a missing value.
  GgufValue Find(std::string_view key) const;

  // All tensors of all files, by name. Null where there is none.
  const std::vector<GgufTensor>& tensors() const;
  const GgufTensor* FindTensor(std::string_view name) const;
  const std::string& FileOf(const GgufTensor& tensor) const;

  // Gives the memory of a mapped tensor, or a part of one, back; it is read from its file when next
  // used.
  void DropPages(const std::byte* data, size_t num_bytes) const;

 private:
  struct Impl;
  explicit GgufSet(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// The GGUF file that `path`, which a user gave for a model, means: the file itself when it is one
// (its name ends in .gguf, or it begins like one), or the only one of a folder that holds no
// safetensors checkpoint (of a split file its first part; mmproj*.gguf do not count). Empty where
// `path` means none. Throws InvalidInput for a folder with several, listing them.
std::string FindGgufFile(const std::string& path);

}  // namespace pmkvq
