// The loops behind peak.h, compiled per instruction set. Internal to peak/.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pmkvq::internal {

uint64_t SumWordsVector(const uint64_t* words, size_t count);

// What a loop of arithmetic did. `result` depends on every step, so that none can be left out.
struct PeakWork {
  double operations = 0;
  double result = 0;
};
// `seed` keeps the compiler from knowing the operands.
PeakWork RunFloatChains(int64_t iterations, float seed);
PeakWork RunInt8Chains(int64_t iterations, int seed);

// The HWY_TARGET that the functions above run now (tests prove with it what they tested).
int64_t PeakKernelTarget();

}  // namespace pmkvq::internal
