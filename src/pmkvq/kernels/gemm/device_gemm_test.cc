#include "pmkvq/kernels/gemm/device_gemm.h"

#include <gtest/gtest.h>

#include "pmkvq/base/error.h"
#include "pmkvq/tensor/device/device_info.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

TEST(DeviceGemmTest, PaddedRows) {
  for (const auto& [rows, padded] :
       std::initializer_list<std::pair<int64_t, int64_t>>{{1, 64},
                                                          {63, 64},
                                                          {64, 64},
                                                          {65, 128},
                                                          {128, 128},
                                                          {129, 136},
                                                          {136, 136},
                                                          {513, 520}}) {
    EXPECT_EQ(DeviceGemm::PaddedRows(rows), padded) << rows;
  }
}

TEST(DeviceGemmTest, ABuildWithoutCudaRefuses) {
  if (CudaVersionText() != "none") GTEST_SKIP() << "this build has CUDA";
  testing_support::ExpectError<Unsupported>(
      [] {
        const DeviceGemm gemm({Device::kCuda, 1});
      },
      {"[cuda:1] products of matrices: found a program built without code for this device"});
}

}  // namespace
}  // namespace pmkvq
