// The tensor types of GGUF files: weights in blocks of `block_values`, each `block_bytes` long.
//
// PMKVQ_GGUF_TENSOR_TYPES is the only list of types that can be read. The layout of each is in
// docs/formats.md; each is a weight format of the same name (tensor/weight_format.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>

#include "pmkvq/base/check.h"

namespace pmkvq {

// X(id, name, code in files, block_values, block_bytes)
#define PMKVQ_GGUF_TENSOR_TYPES(X)  \
  X(F32, "F32", 0, 1, 4)            \
  X(F16, "F16", 1, 1, 2)            \
  X(Q4_0, "Q4_0", 2, 32, 18)        \
  X(Q4_1, "Q4_1", 3, 32, 20)        \
  X(Q5_0, "Q5_0", 6, 32, 22)        \
  X(Q5_1, "Q5_1", 7, 32, 24)        \
  X(Q8_0, "Q8_0", 8, 32, 34)        \
  X(Q2_K, "Q2_K", 10, 256, 84)      \
  X(Q3_K, "Q3_K", 11, 256, 110)     \
  X(Q4_K, "Q4_K", 12, 256, 144)     \
  X(Q5_K, "Q5_K", 13, 256, 176)     \
  X(Q6_K, "Q6_K", 14, 256, 210)     \
  X(IQ4_NL, "IQ4_NL", 20, 32, 18)   \
  X(IQ4_XS, "IQ4_XS", 23, 256, 136) \
  X(BF16, "BF16", 30, 1, 2)         \
  X(MXFP4, "MXFP4", 39, 32, 17)

enum class GgufTensorType : uint8_t {
#define PMKVQ_ROW(id, name, code, block_values, block_bytes) k##id,
  PMKVQ_GGUF_TENSOR_TYPES(PMKVQ_ROW)
#undef PMKVQ_ROW
};

struct GgufTensorLayout {
  std::string_view name;
  uint32_t code = 0;
  int64_t block_values = 1;
  int64_t block_bytes = 0;
};

inline constexpr GgufTensorLayout kGgufTensorLayouts[] = {
#define PMKVQ_ROW(id, name, code, block_values, block_bytes) \
  {name, code, block_values, block_bytes},
    PMKVQ_GGUF_TENSOR_TYPES(PMKVQ_ROW)
#undef PMKVQ_ROW
};
inline constexpr size_t kNumGgufTensorTypes = std::size(kGgufTensorLayouts);

// A type that is not in the list is a caller's bug (check).
constexpr const GgufTensorLayout& LayoutOf(GgufTensorType type) {
  PMKVQ_CHECK_MSG(static_cast<size_t>(type) < kNumGgufTensorTypes, "unknown GGUF tensor type");
  return kGgufTensorLayouts[static_cast<size_t>(type)];
}

// Nothing for a code that is not in the list.
std::optional<GgufTensorType> FindGgufTensorType(uint32_t code);
// For messages: "IQ2_XS (17)"; "4, which is no type any more"; "1000, which is not known".
std::string DescribeForeignGgufType(uint32_t code);
// "F32, F16, Q4_0, ...".
std::string GgufTensorTypeNames();

}  // namespace pmkvq
