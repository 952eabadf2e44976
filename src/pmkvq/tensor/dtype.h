// Element types of tensors in files and in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "pmkvq/base/check.h"

namespace pmkvq {

enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kF64,
  kI8,
  kU8,
  kI16,
  kU16,
  kI32,
  kU32,
  kI64,
  kU64,
  kBool
};

inline size_t SizeOf(DType dtype) {
  switch (dtype) {
    case DType::kF64:
    case DType::kI64:
    case DType::kU64:
      return 8;
    case DType::kF32:
    case DType::kI32:
    case DType::kU32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
    case DType::kI16:
    case DType::kU16:
      return 2;
    case DType::kI8:
    case DType::kU8:
    case DType::kBool:
      return 1;
  }
  PMKVQ_CHECK_MSG(false, "unknown dtype");
  return 0;
}

// The name that safetensors uses: "F32", "BF16", "I64", ...
constexpr std::string_view NameOf(DType dtype) {
  constexpr std::string_view kNames[] = {"F32", "F16", "BF16", "F64", "I8",  "U8",  "I16",
                                         "U16", "I32", "U32",  "I64", "U64", "BOOL"};
  return kNames[static_cast<size_t>(dtype)];
}

inline bool IsFloat16Or32(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

}  // namespace pmkvq
