#include "pmkvq/engine/length_forecast.h"

#include <algorithm>
#include <cmath>

#include "pmkvq/base/check.h"

namespace pmkvq {
namespace {

constexpr int64_t kBucketTokens = 128;
constexpr size_t kMostLengths = 2000;
constexpr double kPriorMedian = 6144;
constexpr double kPriorSigma = 0.9;
constexpr double kPriorRequests = 20;

double PriorSurvival(double num_tokens) {
  if (num_tokens <= 0) return 1;
  return 0.5 * std::erfc(std::log(num_tokens / kPriorMedian) / (kPriorSigma * std::sqrt(2.0)));
}

}  // namespace

LengthForecast::LengthForecast(int64_t max_tokens) {
  PMKVQ_CHECK(max_tokens >= 0);
  const auto num_buckets = static_cast<size_t>(max_tokens / kBucketTokens + 1);
  for (size_t i = 0; i <= num_buckets; ++i) {
    prior_.push_back(PriorSurvival(static_cast<double>(i) * kBucketTokens));
  }
  ended_.resize(num_buckets);
  cut_.resize(num_buckets);
}

void LengthForecast::Add(int64_t num_tokens, bool was_cut) {
  const auto bucket = static_cast<size_t>(std::max<int64_t>(0, num_tokens) / kBucketTokens);
  lengths_.push_back({std::min(bucket, ended_.size() - 1), was_cut});
  const auto count = [&](const Length& length, int64_t change) {
    (length.was_cut ? cut_ : ended_)[length.bucket] += change;
  };
  count(lengths_.back(), 1);
  if (lengths_.size() > kMostLengths) {
    count(lengths_.front(), -1);
    lengths_.pop_front();
  }
  is_current_ = false;
}

void LengthForecast::Update() const {
  is_current_ = true;
  survival_.assign(1, 1);
  auto at_risk = static_cast<double>(lengths_.size());
  for (size_t bucket = 0; bucket < ended_.size(); ++bucket) {
    // Those that were cut in the bucket have survived half of it, on average.
    const double exposed = at_risk - static_cast<double>(cut_[bucket]) / 2;
    const double ends = static_cast<double>(ended_[bucket]) +
                        kPriorRequests * (prior_[bucket] - prior_[bucket + 1]);
    const double all = std::max(exposed + kPriorRequests * prior_[bucket], 1e-9);
    survival_.push_back(survival_.back() * std::clamp(1 - ends / all, 0.0, 1.0));
    at_risk -= static_cast<double>(ended_[bucket] + cut_[bucket]);
  }
}

double LengthForecast::Survival(int64_t num_tokens) const {
  if (!is_current_) Update();
  if (num_tokens <= 0) return 1;
  const auto bucket = static_cast<size_t>(num_tokens / kBucketTokens);
  if (bucket + 1 >= survival_.size()) return survival_.back();
  const double part = static_cast<double>(num_tokens % kBucketTokens) / kBucketTokens;
  return survival_[bucket] + part * (survival_[bucket + 1] - survival_[bucket]);
}

}  // namespace pmkvq
