// Tests that want a CUDA device. Without one they are skipped, or fail where PMKVQ_REQUIRE_GPU is
// set, as ./run test-gpu does: a run that tested nothing must not look like one that passed.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>

#include "pmkvq/tensor/device/device_info.h"
#include "pmkvq/tensor/device/stream.h"

namespace pmkvq {

// A fixture with a stream on device 0.
class GpuTest : public testing::Test {
 protected:
  static constexpr DeviceId kDevice{Device::kCuda, 0};

  void SetUp() override {
    const DeviceList list = ListDevices();
    if (list.devices.empty()) {
      if (std::getenv("PMKVQ_REQUIRE_GPU") != nullptr) {
        FAIL() << "found no CUDA device: " << list.problem;
      }
      GTEST_SKIP() << "found no CUDA device: " << list.problem;
    }
    stream_ = std::make_unique<Stream>(kDevice);
  }

  Stream& stream() { return *stream_; }

 private:
  std::unique_ptr<Stream> stream_;
};

}  // namespace pmkvq
