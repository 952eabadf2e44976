// The header of a GGUF file: metadata pairs and tensor records (docs/formats.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "pmkvq/io/gguf/gguf_value.h"
#include "pmkvq/io/gguf/tensor_types.h"

namespace pmkvq {

struct GgufTensor {
  std::string_view name;
  GgufTensorType type = GgufTensorType::kF32;
  int64_t cols = 0;  // The fastest dimension, whole blocks.
  int64_t rows = 1;  // Product of the others.
  uint32_t num_dims = 0;
  uint64_t sizes[4] = {1, 1, 1, 1};  // Fastest first, as stored.
  const std::byte* data = nullptr;
  uint64_t num_bytes = 0;
};

struct GgufPair {
  std::string_view key;
  GgufType type = GgufType::kU8;
  GgufType element_type = GgufType::kU8;  // Of an array.
  uint64_t size = 0;                      // Elements of an array.
  const std::byte* data = nullptr;
};

struct GgufHeader {
  uint32_t version = 0;
  std::vector<GgufPair> pairs;      // Sorted by key.
  std::vector<GgufTensor> tensors;  // Sorted by name.
};

// `file` holds all bytes of the file, into which the result points; `path` names it in errors.
//
// Checks everything before it is used: magic, version (2 and 3; version 1 and big endian are
// refused by name), counts against the bytes that are left, strings, types, nesting (arrays of
// arrays are refused), keys and names (UTF-8 without control characters, distinct), alignment,
// dimensions, whole blocks, and that tensors lie inside the file, aligned, without overlap. Sizes
// are computed in checked 64-bit arithmetic. Memory: at most 120 bytes for each pair and tensor
// that the file really holds, within limits::kMetadataEntries and limits::kGgufTensors.
// Throws InvalidInput and Unsupported naming file, field, value found and what was expected.
// The fuzz entry point.
GgufHeader ParseGgufHeader(const std::string& path, std::span<const std::byte> file);

}  // namespace pmkvq
