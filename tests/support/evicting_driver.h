// KV heads of a MethodDriver that evicts.
#pragma once

#include <cstdint>
#include <vector>

#include "pmkvq/research/methods/eviction.h"
#include "support/method_rule.h"

namespace pmkvq::testing_support {

inline constexpr UniformKvGeometry kDriverGeometry{1, 4, 2, 64};
inline constexpr int64_t kTokenBytes = 2 * 2 * 64 * 2;  // K and V of both heads, 16 bits.

// Tokens that a head of block 0 keeps.
inline std::vector<int64_t> Kept(const MethodDriver& driver, int64_t head) {
  return KeptTokens(driver.block(), head, driver.block().num_tokens());
}

}  // namespace pmkvq::testing_support
