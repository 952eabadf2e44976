// Reading and writing the safetensors format (docs/formats.md).
//
// A file is mapped, never read as a whole; tensors are views into the mapping.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "pmkvq/tensor/tensor.h"

namespace pmkvq {

// A tensor of a dtype that the format has, or will have, and that no computation here takes:
// F8_E4M3, F8_E5M2, F8_E8M0, F6_E2M3, F4, C64, ... It can be listed; float8 weights are expanded
// (io/weights/fp8_weights.h).
struct ForeignTensor {
  std::string dtype;
  Shape shape;
  uint64_t num_bytes = 0;
  const std::byte* data = nullptr;  // As TensorView's; not aligned.
};

// One mapped file. Views stay valid while this object lives and move with it. Their data is
// aligned to the element size: a tensor that a foreign file stores misaligned is copied.
class SafetensorsFile {
 public:
  // Maps `path` and validates the whole header before anything else is used: length prefix,
  // JSON, dtypes, shapes (no negative or overflowing products), offsets in range, in order,
  // without overlap or gap, byte length equal to shape x dtype.
  // Within limits::kHeaderBytes, kTensors, kTensorRank, kTensorNameBytes, kMetadataEntries.
  // Throws IoError (cannot open) or InvalidInput naming file, tensor, field, value, expectation.
  static SafetensorsFile Open(const std::string& path);

  // The same from tensors in memory, under a name that errors can show: for synthetic weights.
  static SafetensorsFile FromMemory(const std::string& name, std::map<std::string, Tensor> tensors);

  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;
  ~SafetensorsFile();

  const std::string& path() const;
  // Sorted by name.
  const std::map<std::string, TensorView>& tensors() const;
  const std::map<std::string, std::string>& metadata() const;
  // Tensors of types that this program does not compute with. Not among tensors().
  const std::map<std::string, ForeignTensor>& foreign_tensors() const;

  // Gives the memory of a mapped tensor back; its data is read from the file when next used.
  // Tensors in memory stay.
  void DropPages(const TensorView& tensor) const;

  // Null when there is no such tensor.
  const TensorView* Find(const std::string& name) const;
  // As Find, but throws InvalidInput naming the file when missing, or when dtype or shape differ;
  // Unsupported for a foreign tensor.
  const TensorView& Get(const std::string& name, DType dtype, const Shape& shape) const;
  // Throws Unsupported naming file, tensor and dtype when it is a foreign tensor.
  void RefuseForeign(const std::string& name) const;

 private:
  struct Impl;
  explicit SafetensorsFile(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Parses and validates a header only. `header` is the JSON text, `data_bytes` the number of
// bytes behind it, `data` where they begin (may be null: the views then hold offsets from null).
// The entry point of the fuzz target; SafetensorsFile::Open calls it.
struct SafetensorsHeader {
  std::map<std::string, TensorView> tensors;
  std::map<std::string, ForeignTensor> foreign_tensors;
  std::map<std::string, std::string> metadata;
};
SafetensorsHeader ParseSafetensorsHeader(const std::string& path, std::string_view header,
                                         const std::byte* data, uint64_t data_bytes);

// Writes to a temporary name in the same folder, then renames. Larger elements come first, then
// the name decides; the header is padded with spaces so that the data start at a multiple of 64
// bytes. The format allows no gaps, so a tensor is aligned to its element size. Throws IoError.
void WriteSafetensors(const std::string& path, const std::map<std::string, TensorView>& tensors,
                      const std::map<std::string, std::string>& metadata = {});

}  // namespace pmkvq
