#include "pmkvq/kernels/sampling/device_sampler.h"

#include <gtest/gtest.h>

#include "pmkvq/base/error.h"
#include "pmkvq/tensor/device/device_info.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

TEST(DeviceSamplerTest, ABuildWithoutCudaRefuses) {
  if (CudaVersionText() != "none") GTEST_SKIP() << "this build has CUDA";
  testing_support::ExpectError<Unsupported>(
      [] {
        const DeviceSampler sampler({Device::kCuda, 0}, 100, 1);
      },
      {"[cuda:0] drawing tokens: found a program built without code for this device"});
}

}  // namespace
}  // namespace pmkvq
