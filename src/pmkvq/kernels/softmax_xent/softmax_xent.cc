#include "pmkvq/kernels/softmax_xent/softmax_xent.h"

#include <algorithm>
#include <cmath>

#include "pmkvq/base/check.h"

namespace pmkvq {
namespace {

// log(sum_i exp(logits[i])), in double and without overflow.
template <class Real>
double LogSumExp(const Real* logits, int64_t size) {
  const double max = static_cast<double>(*std::max_element(logits, logits + size));
  double sum = 0.0;
  for (int64_t i = 0; i < size; ++i) sum += std::exp(static_cast<double>(logits[i]) - max);
  return max + std::log(sum);
}

}  // namespace

template <class Real>
double CrossEntropy(const Real* logits, int64_t vocab_size, int64_t target) {
  PMKVQ_CHECK(target >= 0 && target < vocab_size);
  return LogSumExp(logits, vocab_size) - static_cast<double>(logits[target]);
}

template <class Real>
double CrossEntropyGrad(Real* logits, int64_t vocab_size, int64_t target, double weight) {
  PMKVQ_CHECK(target >= 0 && target < vocab_size);
  const double max = static_cast<double>(*std::max_element(logits, logits + vocab_size));
  const double target_logit = static_cast<double>(logits[target]);
  double sum = 0.0;
  for (int64_t i = 0; i < vocab_size; ++i) {
    const double e = std::exp(static_cast<double>(logits[i]) - max);
    logits[i] = static_cast<Real>(e);
    sum += e;
  }
  const double scale = weight / sum;
  const double target_e = std::exp(target_logit - max);
  for (int64_t i = 0; i < vocab_size; ++i) {
    logits[i] = static_cast<Real>(static_cast<double>(logits[i]) * scale);
  }
  // Apart, because softmax - 1 cancels when the target is nearly certain.
  logits[target] = static_cast<Real>((target_e - sum) * scale);
  return max + std::log(sum) - target_logit;
}

double KlDivergence(const float* p_logits, const float* q_logits, int64_t vocab_size) {
  PMKVQ_CHECK(vocab_size > 0);
  const double p_norm = LogSumExp(p_logits, vocab_size);
  const double q_norm = LogSumExp(q_logits, vocab_size);
  double sum = 0.0;
  for (int64_t i = 0; i < vocab_size; ++i) {
    const double log_p = static_cast<double>(p_logits[i]) - p_norm;
    const double p = std::exp(log_p);
    // 0 log 0 = 0, also where both logits are minus infinity.
    if (p > 0.0) sum += p * (log_p - (static_cast<double>(q_logits[i]) - q_norm));
  }
  return sum;
}

template double CrossEntropy<float>(const float*, int64_t, int64_t);
template double CrossEntropy<double>(const double*, int64_t, int64_t);
template double CrossEntropyGrad<float>(float*, int64_t, int64_t, double);
template double CrossEntropyGrad<double>(double*, int64_t, int64_t, double);

}  // namespace pmkvq
