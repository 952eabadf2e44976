#include "pmkvq/kernels/routing/device_experts.h"

namespace pmkvq {
namespace {

// Of an array, so that the next one begins well.
size_t AreaOf(int64_t count) {
  constexpr size_t kAlign = 256;
  return (static_cast<size_t>(count) * sizeof(int32_t) + kAlign - 1) / kAlign * kAlign;
}

}  // namespace

size_t DeviceRoutingBytes(const RoutingRule& rule, int64_t rows) {
  return 4 * AreaOf(rows * rule.num_chosen) + 2 * AreaOf(rule.num_experts + 1);
}

DeviceRouting CutRouting(const RoutingRule& rule, int64_t rows, std::byte* memory) {
  const auto take = [&](int64_t count) {
    auto* const part = reinterpret_cast<int32_t*>(memory);
    memory += AreaOf(count);
    return part;
  };
  const int64_t pairs = rows * rule.num_chosen;
  DeviceRouting routing;
  routing.experts = take(pairs);
  routing.weights = reinterpret_cast<float*>(take(pairs));
  routing.places = take(pairs);
  routing.pairs = take(pairs);
  routing.first = take(rule.num_experts + 1);
  routing.used = take(rule.num_experts + 1);
  return routing;
}

}  // namespace pmkvq
