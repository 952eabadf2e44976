// The float kernels behind act.h, compiled per instruction set. Internal to act/.
#pragma once

#include <cstdint>

namespace pmkvq::internal {

void SiluMulFloat(const float* gate, const float* up, int64_t count, float* y);
void SiluMulGradFloat(const float* gate, const float* up, const float* dy, int64_t count,
                      float* dgate, float* dup);
void GeluMulFloat(const float* gate, const float* up, int64_t count, float* y);
void GeluMulGradFloat(const float* gate, const float* up, const float* dy, int64_t count,
                      float* dgate, float* dup);

// gelu(z) = z sigmoid(z (kGeluLinear + kGeluCubic z^2)).
inline constexpr double kGeluLinear = 1.5957691216057308;  // 2 sqrt(2 / pi)
inline constexpr double kGeluCubic = kGeluLinear * 0.044715;

// The HWY_TARGET that the functions above run now (tests prove with it what they tested).
int64_t ActKernelTarget();

}  // namespace pmkvq::internal
