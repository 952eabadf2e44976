// The gated activation of llama-family MLPs: y = silu(gate) * up, silu(z) = z / (1 + exp(-z)).
#pragma once

#include <cstdint>

#include "pmkvq/tensor/device/exec_context.h"

namespace pmkvq {

// All arrays [count]; y may equal gate or up. An element's bits do not depend on its place.
template <class Real>
void SiluMul(const Real* gate, const Real* up, int64_t count, Real* y, const ExecContext& exec);

// dgate, dup [count] overwritten, given dy; may equal gate and up.
template <class Real>
void SiluMulGrad(const Real* gate, const Real* up, const Real* dy, int64_t count, Real* dgate,
                 Real* dup, const ExecContext& exec);

}  // namespace pmkvq
