// What the steps of calibration measure of one sample, for models on a device: the same values as
// on the CPU, by the kernels of kernels/kv_quant/sequence_quant.h. Only these values come to the
// host. Private to this folder.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "pmkvq/model/model.h"
#include "pmkvq/research/calib/calibration.h"

namespace pmkvq {

// As SampleLoopStep::process. `model` must outlive it.
using SampleProcess = std::function<std::vector<double>(std::span<const int32_t> tokens,
                                                        std::span<const int64_t> positions)>;

// [L, Hkv, D/2]
SampleProcess MaxKeysOnDevice(const Model& model);
// [K, V][16, 8, 4, 2 bits][L]: sums of damage over the number of values; with_keys: then what
// MaxKeysOnDevice gives.
SampleProcess SensitivityOnDevice(const Model& model, bool with_keys);
// [L, grid]: mean squared errors. scales [L, grid, Hkv, D/2]. Keys and values of 4 bits or less are
// attended to in F16, whose rounding is far below theirs; wider ones in F32.
SampleProcess ScaleErrorsOnDevice(const Model& model, const RepScaleOptions& options,
                                  const std::vector<float>& scales);

}  // namespace pmkvq
