// What holds for every simulated method whose rule knows lengths alone: the cuts of an append into
// chunks do not matter, and neither does what a truncation cut off.
#pragma once

#include <string>

#include "support/method_driver.h"

namespace pmkvq::testing_support {

inline KeysAndValues StoredAfter(const std::string& spec, const UniformKvGeometry& geometry,
                                 const std::vector<int64_t>& chunks) {
  MethodDriver driver(spec, geometry);
  for (const int64_t chunk : chunks) driver.Append(chunk);
  return driver.Stored();
}

// 300 tokens in other chunks, bit for bit; and in one that was longer and cut back to `kept` tokens
// of which none was quantised that would be at full precision now.
inline void ExpectChunksDoNotMatter(const std::string& spec, int64_t kept,
                                    const UniformKvGeometry& geometry = {2, 4, 2, 64}) {
  const KeysAndValues at_once = StoredAfter(spec, geometry, {300});
  EXPECT_EQ(StoredAfter(spec, geometry, {1, 126, 1, 1, 70, 57, 44}), at_once) << spec;
  EXPECT_EQ(StoredAfter(spec, geometry, std::vector<int64_t>(300, 1)), at_once) << spec;
  MethodDriver driver(spec, geometry);
  driver.Append(kept + 7);
  driver.store().Truncate(driver.seq(), kept);
  driver.Append(300 - kept);
  EXPECT_EQ(driver.Stored(), at_once) << spec;
}

}  // namespace pmkvq::testing_support
