// Keys and values that a cache's float type cannot hold, on a CUDA device.
//
// Threads: one caller per stream. Errors: Unsupported in a program without CUDA; DeviceError.
#pragma once

#include <cstdint>

#include "pmkvq/tensor/device/stream.h"
#include "pmkvq/tensor/dtype.h"

namespace pmkvq {

// Launches a look at values [count], floats of the device. Where one of them is not finite once
// rounded to the float type, F16 or BF16, *unfit, a word of the device, becomes the least of itself
// and `code`.
void LookForUnfit(const float* values, int64_t count, DType float_type, uint32_t code,
                  uint32_t* unfit, Stream& stream);

}  // namespace pmkvq
