// The gated activations of MLPs: y = act(gate) * up.
//   silu(z) = z / (1 + exp(-z))                                           llama family
//   gelu(z) = z / (1 + exp(-2 u)), u = sqrt(2 / pi) (z + 0.044715 z^3)    Gemma: GELU by tanh(u)
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

// The same with gelu.
template <class Real>
void GeluMul(const Real* gate, const Real* up, int64_t count, Real* y, const ExecContext& exec);
template <class Real>
void GeluMulGrad(const Real* gate, const Real* up, const Real* dy, int64_t count, Real* dgate,
                 Real* dup, const ExecContext& exec);

}  // namespace pmkvq
