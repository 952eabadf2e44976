#include "pmkvq/kernels/routing/routing.h"

#include <algorithm>
#include <cmath>

#include "pmkvq/base/check.h"

namespace pmkvq {
namespace {

// Keeps the sum of sigmoids away from 0 where they are divided by it.
constexpr double kLeastSum = 1e-20;

void CheckRule(const RoutingRule& rule) {
  PMKVQ_CHECK(rule.num_experts > 0 && rule.num_experts <= kMostExperts);
  PMKVQ_CHECK(rule.num_groups > 0 && rule.num_experts % rule.num_groups == 0);
  PMKVQ_CHECK(rule.num_chosen_groups > 0 && rule.num_chosen_groups <= rule.num_groups);
  const int64_t group_size = rule.num_experts / rule.num_groups;
  PMKVQ_CHECK(rule.group_top > 0 && rule.group_top <= group_size);
  PMKVQ_CHECK(rule.num_chosen > 0 && rule.num_chosen <= rule.num_chosen_groups * group_size);
}

template <class Real>
void ScoreRow(RouterScore kind, int64_t count, Real* values) {
  if (kind == RouterScore::kSigmoid) {
    for (int64_t i = 0; i < count; ++i) values[i] = Real{1} / (Real{1} + std::exp(-values[i]));
    return;
  }
  const Real largest = *std::max_element(values, values + count);
  Real sum{0};
  for (int64_t i = 0; i < count; ++i) sum += values[i] = std::exp(values[i] - largest);
  for (int64_t i = 0; i < count; ++i) values[i] /= sum;
}

// The index of the largest value that is not taken, of equal ones the first; takes it. One has to
// be free. NaN is never found to be larger, so any values will do.
template <class Real>
int64_t TakeLargest(const Real* values, int64_t count, bool* is_taken) {
  int64_t best = -1;
  for (int64_t i = 0; i < count; ++i) {
    if (!is_taken[i] && (best < 0 || values[i] > values[best])) best = i;
  }
  is_taken[best] = true;
  return best;
}

// Takes the experts of all groups but the best ones.
template <class Real>
void TakeOtherGroups(const RoutingRule& rule, const Real* choice, bool* is_taken) {
  if (rule.num_chosen_groups == rule.num_groups) return;
  const int64_t size = rule.num_experts / rule.num_groups;
  Real sums[kMostExperts];
  for (int64_t group = 0; group < rule.num_groups; ++group) {
    bool is_counted[kMostExperts] = {};
    sums[group] = Real{0};
    for (int64_t i = 0; i < rule.group_top; ++i) {
      const Real* const members = choice + group * size;
      sums[group] += members[TakeLargest(members, size, is_counted)];
    }
  }
  bool is_chosen[kMostExperts] = {};
  for (int64_t i = 0; i < rule.num_chosen_groups; ++i) {
    TakeLargest(sums, rule.num_groups, is_chosen);
  }
  for (int64_t i = 0; i < rule.num_experts; ++i) is_taken[i] = !is_chosen[i / size];
}

template <class Real>
void RouteRow(const RoutingRule& rule, const float* bias, Real* scores, int32_t* experts,
              Real* weights) {
  ScoreRow(rule.score, rule.num_experts, scores);
  Real choice[kMostExperts];
  for (int64_t i = 0; i < rule.num_experts; ++i) {
    choice[i] = bias == nullptr ? scores[i] : scores[i] + static_cast<Real>(bias[i]);
  }
  bool is_taken[kMostExperts] = {};
  TakeOtherGroups(rule, choice, is_taken);
  Real sum{0};
  for (int64_t j = 0; j < rule.num_chosen; ++j) {
    const int64_t expert = TakeLargest(choice, rule.num_experts, is_taken);
    experts[j] = static_cast<int32_t>(expert);
    weights[j] = scores[expert];
    sum += weights[j];
  }
  const auto factor = static_cast<Real>(rule.factor);
  const Real scale = rule.normalize ? factor / (sum + static_cast<Real>(kLeastSum)) : factor;
  for (int64_t j = 0; j < rule.num_chosen; ++j) weights[j] *= scale;
}

template <class Real>
void RouteRowGrad(const RoutingRule& rule, const Real* scores, const int32_t* experts,
                  const Real* dweights, Real* dlogits) {
  // With weights w_j = f s_j, or f s_j / S and S = sum of the s_j: the gradients of the s_j are
  // f dw_j, or f / S (dw_j - sum_i dw_i s_i / S).
  Real sum{0};
  Real dot{0};
  for (int64_t j = 0; j < rule.num_chosen; ++j) {
    sum += scores[experts[j]];
    dot += scores[experts[j]] * dweights[j];
  }
  sum = rule.normalize ? sum + static_cast<Real>(kLeastSum) : Real{1};
  const Real mean = rule.normalize ? dot / sum : Real{0};
  const Real scale = static_cast<Real>(rule.factor) / sum;
  std::fill_n(dlogits, rule.num_experts, Real{0});
  Real weighted{0};
  for (int64_t j = 0; j < rule.num_chosen; ++j) {
    const Real dscore = scale * (dweights[j] - mean);
    dlogits[experts[j]] = dscore;
    weighted += dscore * scores[experts[j]];
  }
  for (int64_t i = 0; i < rule.num_experts; ++i) {
    dlogits[i] = rule.score == RouterScore::kSoftmax
                     ? scores[i] * (dlogits[i] - weighted)
                     : dlogits[i] * scores[i] * (Real{1} - scores[i]);
  }
}

}  // namespace

template <class Real>
void RouteRows(const RoutingRule& rule, const float* bias, int64_t num_rows, Real* scores,
               int32_t* experts, Real* weights) {
  CheckRule(rule);
  for (int64_t row = 0; row < num_rows; ++row) {
    RouteRow(rule, bias, scores + row * rule.num_experts, experts + row * rule.num_chosen,
             weights + row * rule.num_chosen);
  }
}

template <class Real>
void RouteRowsGrad(const RoutingRule& rule, int64_t num_rows, const Real* scores,
                   const int32_t* experts, const Real* dweights, Real* dlogits) {
  CheckRule(rule);
  for (int64_t row = 0; row < num_rows; ++row) {
    RouteRowGrad(rule, scores + row * rule.num_experts, experts + row * rule.num_chosen,
                 dweights + row * rule.num_chosen, dlogits + row * rule.num_experts);
  }
}

void GroupByExpert(std::span<const int32_t> experts, int64_t num_experts, int32_t* first,
                   int32_t* order) {
  std::fill_n(first, num_experts + 1, 0);
  for (const int32_t expert : experts) ++first[expert + 1];
  for (int64_t e = 0; e < num_experts; ++e) first[e + 1] += first[e];
  // first[e + 1] is where expert e ends; filled from there, it becomes where it begins.
  for (int64_t place = std::ssize(experts) - 1; place >= 0; --place) {
    order[--first[experts[static_cast<size_t>(place)] + 1]] = static_cast<int32_t>(place);
  }
  std::copy_n(first + 1, num_experts, first);
  first[num_experts] = static_cast<int32_t>(experts.size());
}

#define PMKVQ_INSTANTIATE(Real)                                                               \
  template void RouteRows<Real>(const RoutingRule&, const float*, int64_t, Real*, int32_t*,   \
                                Real*);                                                       \
  template void RouteRowsGrad<Real>(const RoutingRule&, int64_t, const Real*, const int32_t*, \
                                    const Real*, Real*);
PMKVQ_INSTANTIATE(float)
PMKVQ_INSTANTIATE(double)
#undef PMKVQ_INSTANTIATE

}  // namespace pmkvq
