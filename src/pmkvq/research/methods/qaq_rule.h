// QAQ's rule for the values that one token has in one unit: the width that it asks for, and what
// the values read back as at any width.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "pmkvq/tensor/dtype.h"

namespace pmkvq {

struct QaqRule {
  bool reference = false;     // As the published code has it, not as the paper.
  double key_error = 3.0;     // eps_K
  double value_error = 0.05;  // eps_V
  double query_power = 300;   // Q2, of squared norms of queries.
  double outliers = 0.01;     // Share of a unit's values, both ends together.
  int least_bits = 1;
  int most_bits = 8;
  DType metadata_type = DType::kF16;
};

// Values that are kept at full precision, at each end of a unit of `count` values.
int64_t QaqOutliersPerEnd(const QaqRule& rule, int64_t count);

// The values of one token in one unit. Outliers are those below the (k + 1)-th smallest value, or
// above the (k + 1)-th largest, k = QaqOutliersPerEnd; of equal values there may be fewer than k.
struct QaqValues {
  std::vector<bool> is_outlier;
  float lowest = 0;  // Of the others, like the following.
  float highest = 0;
  double mean = 0;
};
// Throws UnfitValues where a value is not finite.
QaqValues QaqLookAt(const QaqRule& rule, std::span<const float> values);

// ceil(log2(range / (2 sqrt(3) sigma))), within the rule's bounds, with
//   keys:   sigma^2 = ln(T^3 / (T - 1) eps_K^2 + 1) / Q2
//   values: sigma = eps_V / (sqrt(T) a)
// T >= 2 tokens so far, a the largest attention weight on the token. The code: ceil(log2(range / (4
// sqrt(3) sigma) + 1)).
int QaqKeyBits(const QaqRule& rule, const QaqValues& values, int64_t num_tokens);
int QaqValueBits(const QaqRule& rule, const QaqValues& values, int64_t num_tokens,
                 double attention);

// Replaces all values but outliers: 2^bits equal segments from lowest to highest, read at their
// middles. The code: steps of range / 2^bits around the mean, from -2^(bits - 1) to 2^(bits - 1) -
// 1, so that the longer side is cut. Minimum (or mean) and range are rounded to the stored type.
// Throws UnfitValues where that cannot hold them.
void QaqDamage(const QaqRule& rule, const QaqValues& looked_at, int bits, std::span<float> values);

// Widths whose sum is `room`, or as near to it as least_bits and most_bits allow: one step at a
// time, the token whose width is nearest to what it wanted gets one bit less (more, where room is
// left); of equally near ones the widest (narrowest), then the oldest.
std::vector<int> QaqFit(const QaqRule& rule, const std::vector<int>& wanted, int64_t room);

}  // namespace pmkvq
