// Log-softmax of logits: cross entropy with its gradient, and KL divergence.
#pragma once

#include <cstdint>

namespace pmkvq {

// -log softmax(logits)[target] of one row, logits [vocab_size].
template <class Real>
double CrossEntropy(const Real* logits, int64_t vocab_size, int64_t target);

// logits [vocab_size] becomes weight * (softmax(logits) - onehot(target)); returns the cross
// entropy (not weighted).
template <class Real>
double CrossEntropyGrad(Real* logits, int64_t vocab_size, int64_t target, double weight);

// KL(softmax(p_logits) || softmax(q_logits)) in nats.
double KlDivergence(const float* p_logits, const float* q_logits, int64_t vocab_size);

}  // namespace pmkvq
