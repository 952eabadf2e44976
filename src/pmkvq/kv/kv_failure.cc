#include "pmkvq/kv/kv_failure.h"

#include <fmt/format.h>

#include <cmath>

namespace pmkvq {
namespace {

std::string NameOfType(DType type) {
  switch (type) {
    case DType::kF16:
      return "f16";
    case DType::kBF16:
      return "bf16";
    default:
      return "f32";
  }
}

// What the type holds and, where a wider one is to be had, how to ask for it.
std::string Expected(DType type) {
  if (type == DType::kF16) return "expected at most 65504; --kv-dtype bf16 holds it";
  return "which no --kv-dtype holds, expected smaller values from the model";
}

}  // namespace

std::string KvWhere(int64_t layer, int64_t first, int64_t last) {
  if (first == last) return fmt::format("kv cache, block {}, position {}", layer, first);
  return fmt::format("kv cache, block {}, positions {} to {}", layer, first, last);
}

std::string UnfitValueMessage(const char* name, float value, DType type) {
  if (!std::isfinite(value)) {
    return fmt::format(
        "the model produced a non-finite {}: found {}, expected finite numbers: a "
        "weight is not finite, or values overflowed",
        name, std::isnan(value) ? std::abs(value) : value);
  }
  return fmt::format("a {} does not fit {}: found {}, {}", name, NameOfType(type), value,
                     Expected(type));
}

std::string UnfitRangeMessage(const char* name, float lowest, float highest, DType type) {
  return fmt::format("the range of a group of {}s does not fit {}: found {} from {} to {}, {}",
                     name, NameOfType(type), double{highest} - double{lowest}, lowest, highest,
                     Expected(type));
}

std::string UnfitOnDeviceMessage(const char* name) {
  return fmt::format(
      "found a {} that is not finite or does not fit f16, expected at most 65504; "
      "--device cpu names the value, --kv-dtype bf16 holds more there",
      name);
}

KvFailure AbandonedForward() {
  return {"kv cache", "the forward pass was broken off, expected it to end: out of memory?"};
}

}  // namespace pmkvq
