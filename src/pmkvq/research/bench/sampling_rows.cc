#include "pmkvq/research/bench/sampling_rows.h"

#include <cmath>

#include "pmkvq/base/random.h"

namespace pmkvq::internal {

std::vector<float> RandomLogits(int64_t num_rows, int64_t vocab_size, bool flat) {
  std::vector<float> logits(static_cast<size_t>(num_rows * vocab_size));
  Random random(1);
  for (float& logit : logits) {
    double sum = -6.0;
    for (int i = 0; i < 12; ++i) sum += random.Uniform();
    logit = static_cast<float>((flat ? 3.0 : 2.5) * sum);
  }
  for (int64_t row = 0; !flat && row < num_rows; ++row) {
    for (int i = 0; i < kPeaks; ++i) {
      const auto id = static_cast<int64_t>(random.Below(static_cast<uint64_t>(vocab_size)));
      logits[static_cast<size_t>(row * vocab_size + id)] =
          static_cast<float>(22.0 - 1.5 * std::log(i + 1.0));
    }
  }
  return logits;
}

}  // namespace pmkvq::internal
