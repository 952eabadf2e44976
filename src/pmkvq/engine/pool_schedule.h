// How requests share a pool: a setting of the engine.
#pragma once

#include <cstdint>

namespace pmkvq {

enum class PoolAdmission : uint8_t {
  // While the tokens that are expected fit at the target width. What turns out longer than expected
  // is taken from widths, down to the floor.
  kExpected,
  // While all requests fit at the floor with all the tokens they may draw: none ever gives up its
  // place.
  kGuaranteed,
};

// How requests share a pool (KvOptions::pool): who is let in. Of no effect without one.
struct PoolSchedule {
  PoolAdmission admission = PoolAdmission::kExpected;
  // The mean width at which the tokens that are expected have to fit: 4 to 16.
  double target_bits = 8;
  bool priorities = false;  // Request::priority counts.
};

}  // namespace pmkvq
