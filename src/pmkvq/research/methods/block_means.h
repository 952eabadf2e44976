// Calibration data that are means over samples.
#pragma once

#include <map>
#include <string>

#include "pmkvq/research/calib/sample_loop.h"
#include "pmkvq/tensor/tensor.h"

namespace pmkvq {

// Runs the step, whose values are as many of each block, blocks in order. Gives their means over
// samples as tensors "NAME.LAYER" (BlockTensorName) of that many float32. Throws as
// LoopOverSamples does.
std::map<std::string, Tensor> MeansOfBlocks(const CalibrationContext& calibration,
                                            const SampleLoopStep& step, const std::string& name,
                                            int64_t num_layers);

}  // namespace pmkvq
