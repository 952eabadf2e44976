// Routing of a mixture of experts: which experts compute a row, with which weights, and which rows
// each expert computes.
//
// n experts, k of them for each row. A row's scores are softmax(logits) or sigmoid(logits). Its
// experts are those with the k largest choice scores = scores (+ bias); of equal ones the first.
// Their weights are made of the scores, without bias. The choice is discrete: gradients take it as
// fixed.
#pragma once

#include <cstdint>
#include <span>

namespace pmkvq {

inline constexpr int64_t kMostExperts = 1024;
inline constexpr int64_t kMostChosenOnDevice = 64;  // k of device_experts.h.

enum class RouterScore : uint8_t { kSoftmax, kSigmoid };

struct RoutingRule {
  int64_t num_experts = 0;  // n, at most kMostExperts.
  int64_t num_chosen = 0;   // k
  RouterScore score = RouterScore::kSoftmax;
  bool normalize = false;  // Weights of a row are divided by their sum.
  double factor = 1.0;     // They are multiplied with it, after that.
  // Experts lie in groups of n / num_groups. Only those of the best num_chosen_groups groups can be
  // chosen; a group is as good as the sum of its group_top largest choice scores.
  int64_t num_groups = 1;
  int64_t num_chosen_groups = 1;
  int64_t group_top = 1;
};

// scores [num_rows, n]: logits, which become scores. `bias` [n] may be null. experts, weights
// [num_rows, k]: by falling choice score, distinct, and in [0, n) whatever the logits are; logits
// that are not finite give weights that are not. Rows are independent. Real is float or double.
template <class Real>
void RouteRows(const RoutingRule& rule, const float* bias, int64_t num_rows, Real* scores,
               int32_t* experts, Real* weights);

// dlogits [num_rows, n] is overwritten, given dweights [num_rows, k] and what RouteRows left.
template <class Real>
void RouteRowsGrad(const RoutingRule& rule, int64_t num_rows, const Real* scores,
                   const int32_t* experts, const Real* dweights, Real* dlogits);

// Sorts the places of `experts` by expert, those of one expert in their order: expert e has the
// places order[first[e]] to order[first[e + 1] - 1]. order: as many as `experts`; first [n + 1].
void GroupByExpert(std::span<const int32_t> experts, int64_t num_experts, int32_t* first,
                   int32_t* order);

}  // namespace pmkvq
