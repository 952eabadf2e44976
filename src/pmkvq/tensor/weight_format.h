// The formats in which weights are kept: a row of a matrix is cut into blocks of `block_values`
// weights, and each is stored as `block_bytes` bytes. Blocks and rows follow each other without
// gaps; the last block of a row is filled up.
//
// PMKVQ_VALUE_FORMATS and PMKVQ_BLOCK_FORMATS are the only lists of formats. Everything that
// depends on a format is a function or struct that has the format's name, and tables of these are
// made from the lists:
//   Weight<id>   kernels/gemm/weight_formats-inl.h   value formats: products and expansion
//   Block<id>    kernels/gemm/block_formats-inl.h    block formats: the same
//   <id>At       kernels/gemm/weight_at_ref.cc       one weight, for the scalar oracle
// A new row without its functions does not compile.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string_view>

#include "pmkvq/base/check.h"

namespace pmkvq {

// X(id, name, block_values, block_bytes).
//
// Value formats: the products of few rows make floats of weights and multiply them with x as it is.
// Plain ones have blocks of one value; their names are those of safetensors. Q8 is made when a
// model is loaded (kernels/gemm/weight_q8.h). Q8_0 is that of GGUF files: a block is an F16 scale
// and 32 int8 codes, and stands for the weights code * scale.
#define PMKVQ_VALUE_FORMATS(X) \
  X(F32, "F32", 1, 4)          \
  X(F16, "F16", 1, 2)          \
  X(BF16, "BF16", 1, 2)        \
  X(Q8, "Q8", 32, 34)          \
  X(Q8_0, "Q8_0", 32, 34)
// Block formats, those of GGUF files with 2 to 6 bits: their codes are multiplied with x rounded to
// 8 bits (kernels/gemm/block_product.h). Layouts are in docs/formats.md.
#define PMKVQ_BLOCK_FORMATS(X)  \
  X(Q4_0, "Q4_0", 32, 18)       \
  X(Q4_1, "Q4_1", 32, 20)       \
  X(Q5_0, "Q5_0", 32, 22)       \
  X(Q5_1, "Q5_1", 32, 24)       \
  X(Q2_K, "Q2_K", 256, 84)      \
  X(Q3_K, "Q3_K", 256, 110)     \
  X(Q4_K, "Q4_K", 256, 144)     \
  X(Q5_K, "Q5_K", 256, 176)     \
  X(Q6_K, "Q6_K", 256, 210)     \
  X(IQ4_NL, "IQ4_NL", 32, 18)   \
  X(IQ4_XS, "IQ4_XS", 256, 136) \
  X(MXFP4, "MXFP4", 32, 17)
#define PMKVQ_WEIGHT_FORMATS(X) PMKVQ_VALUE_FORMATS(X) PMKVQ_BLOCK_FORMATS(X)

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
#define PMKVQ_ROW(id, name, block_values, block_bytes) +1
inline constexpr size_t kNumValueFormats = 0 PMKVQ_VALUE_FORMATS(PMKVQ_ROW);
#undef PMKVQ_ROW

// A format that is not in the list is a caller's bug (check).
constexpr const WeightLayout& LayoutOf(WeightFormat format) {
  PMKVQ_CHECK_MSG(static_cast<size_t>(format) < kNumWeightFormats, "unknown weight format");
  return kWeightLayouts[static_cast<size_t>(format)];
}

// Whether products round x to 8 bits.
constexpr bool IsBlockFormat(WeightFormat format) {
  return static_cast<size_t>(format) >= kNumValueFormats;
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
