#include "pmkvq/research/methods/block_means.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "pmkvq/research/methods/method_data.h"

namespace pmkvq {

std::map<std::string, Tensor> MeansOfBlocks(const CalibrationContext& calibration,
                                            const SampleLoopStep& step, const std::string& name,
                                            int64_t num_layers) {
  const std::vector<double> sums = LoopOverSamples(calibration, step);
  const auto num_samples = static_cast<double>(calibration.samples->tokens.size());
  const int64_t count = std::ssize(sums) / num_layers;
  std::map<std::string, Tensor> tensors;
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    Tensor tensor(DType::kF32, {count});
    std::transform(sums.begin() + layer * count, sums.begin() + (layer + 1) * count,
                   tensor.As<float>(),
                   [&](double sum) { return static_cast<float>(sum / num_samples); });
    tensors.emplace(BlockTensorName(name, layer), std::move(tensor));
  }
  return tensors;
}

}  // namespace pmkvq
