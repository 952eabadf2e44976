// The loops behind peak.h, compiled per instruction set. Internal to peak/.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pmkvq::internal {

uint64_t SumWordsVector(const uint64_t* words, size_t count);

// The work of a loop of arithmetic. `result` depends on every step, so that the compiler can leave
// out none.
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
