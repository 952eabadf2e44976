// The formats in which weights are kept: a row of a matrix is cut into blocks of `block_values`
// weights, and each is stored as `block_bytes` bytes. Blocks and rows follow each other without
// gaps; the last block of a row is filled up.
//
// PMKVQ_WEIGHT_FORMATS is the only list of formats. Everything that depends on a format is a
// function that has the format's name, and tables of these functions are made from the list:
//   Weight<id>   kernels/gemm/weight_formats-inl.h   vectors of a chunk: products and expansion
//   <id>At       kernels/gemm/gemm_ref.cc            one weight, for the scalar oracle
// A new row without its functions does not compile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string_view>

#include "pmkvq/base/check.h"

namespace pmkvq {

// X(id, name, block_values, block_bytes). Plain formats have blocks of one value; their names are
// those of safetensors. Q8 is made when a model is loaded (kernels/gemm/weight_q8.h). Q8_0 is that
// of GGUF files: a block is an F16 scale and 32 int8 codes, and stands for the weights code *
// scale.
#define PMKVQ_WEIGHT_FORMATS(X) \
  X(F32, "F32", 1, 4)           \
  X(F16, "F16", 1, 2)           \
  X(BF16, "BF16", 1, 2)         \
  X(Q8, "Q8", 32, 34)           \
  X(Q8_0, "Q8_0", 32, 34)

enum class WeightFormat : uint8_t {
#define PMKVQ_ROW(id, name, block_values, block_bytes) k##id,
  PMKVQ_WEIGHT_FORMATS(PMKVQ_ROW)
#undef PMKVQ_ROW
};

struct WeightLayout {
  std::string_view name;
  int64_t block_values = 1;
  int64_t block_bytes = 0;
};

inline constexpr WeightLayout kWeightLayouts[] = {
#define PMKVQ_ROW(id, name, block_values, block_bytes) {name, block_values, block_bytes},
    PMKVQ_WEIGHT_FORMATS(PMKVQ_ROW)
#undef PMKVQ_ROW
};
inline constexpr size_t kNumWeightFormats = std::size(kWeightLayouts);

// A format that is not in the list is a caller's bug (check).
constexpr const WeightLayout& LayoutOf(WeightFormat format) {
  PMKVQ_CHECK_MSG(static_cast<size_t>(format) < kNumWeightFormats, "unknown weight format");
  return kWeightLayouts[static_cast<size_t>(format)];
}

constexpr std::string_view NameOf(WeightFormat format) { return LayoutOf(format).name; }

// Nothing when no format has that name.
constexpr std::optional<WeightFormat> WeightFormatNamed(std::string_view name) {
  for (size_t i = 0; i < kNumWeightFormats; ++i) {
    if (kWeightLayouts[i].name == name) return static_cast<WeightFormat>(i);
  }
  return std::nullopt;
}

// Bytes before weight `col` of a row; `col` begins a block.
constexpr int64_t BytesBefore(WeightFormat format, int64_t col) {
  const WeightLayout& layout = LayoutOf(format);
  return col / layout.block_values * layout.block_bytes;
}

// Bytes of a row of `cols` weights.
constexpr int64_t RowBytes(WeightFormat format, int64_t cols) {
  return BytesBefore(format, cols + LayoutOf(format).block_values - 1);
}

}  // namespace pmkvq
