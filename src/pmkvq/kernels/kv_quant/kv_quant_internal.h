// For the tests of this folder.
#pragma once

#include <cstdint>

namespace pmkvq::internal {

// The Highway target (HWY_AVX2, ...) whose code a call of the vector kernels would run now.
int64_t KvQuantTarget();
int64_t QuantizeStoredTarget();

}  // namespace pmkvq::internal
