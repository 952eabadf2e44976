#include "pmkvq/tensor/device/device_info.h"

#include <gtest/gtest.h>

#include "pmkvq/base/error.h"
#include "pmkvq/tensor/device/stream.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;

constexpr DeviceId kFirst{Device::kCuda, 0};
constexpr DeviceId kSecond{Device::kCuda, 1};

DeviceInfo Chip(DeviceId id, int capability_major) {
  DeviceInfo info;
  info.id = id;
  info.name = "Chip";
  info.capability_major = capability_major;
  info.capability_minor = 5;
  return info;
}

TEST(DeviceInfoTest, ListsDevicesOrSaysWhyThereAreNone) {
  const DeviceList list = ListDevices();
  EXPECT_EQ(list.devices.empty(), !list.problem.empty());
  EXPECT_EQ(list.versions.empty(), CudaVersionText() == "none");
}

TEST(DeviceInfoTest, NamesOfDevicesAreRead) {
  EXPECT_EQ(ParseDevice("cpu"), DeviceId());
  EXPECT_EQ(ParseDevice("cuda"), kFirst);
  EXPECT_EQ(ParseDevice("cuda:1"), kSecond);
  for (const char* text : {"", "gpu", "cuda:", "cuda:-1", "cuda:1x", "CPU", "cuda:99999999999"}) {
    EXPECT_EQ(ParseDevice(text), std::nullopt) << text;
  }
}

TEST(DeviceInfoTest, AnUsableDeviceIsFound) {
  const DeviceList list{
      .problem = "", .versions = "CUDA", .devices = {Chip(kFirst, 7), Chip(kSecond, 9)}};
  EXPECT_EQ(internal::FindUsable(list, kSecond).id, kSecond);
}

TEST(DeviceInfoTest, RefusalsSayWhatWasFoundAndWhatToDo) {
  ExpectError<Unsupported>(
      [] {
        internal::FindUsable({.problem = "this build has no CUDA", .versions = "", .devices = {}},
                             kFirst);
      },
      {"[cuda:0] this build has no CUDA"});
  ExpectError<DeviceError>(
      [] {
        internal::FindUsable({.problem = "no driver", .versions = "CUDA", .devices = {}}, kFirst);
      },
      {"[cuda:0] found no CUDA device: no driver", "--device cpu"});
  ExpectError<Unsupported>(
      [] {
        internal::FindUsable({.problem = "", .versions = "CUDA", .devices = {Chip(kFirst, 7)}},
                             kFirst);
      },
      {"[cuda:0] Chip: found compute capability 7.5, expected 8.0 or later", "--device cpu"});
  ExpectError<DeviceError>(
      [] {
        internal::FindUsable({.problem = "", .versions = "CUDA", .devices = {Chip(kFirst, 9)}},
                             kSecond);
      },
      {"[cuda:1] found 1 CUDA device, expected an index below 1"});
}

TEST(DeviceInfoTest, ABuildWithoutCudaHasNoStreams) {
  if (CudaVersionText() != "none") GTEST_SKIP() << "this build has CUDA";
  ExpectError<Unsupported>([] { const Stream stream(kFirst); },
                           {"[cuda:0] a stream: found a program built without code"});
  ExpectError<Unsupported>([] { const PinnedBuffer buffer(kFirst, 64); }, {"pinned memory"});
}

}  // namespace
}  // namespace pmkvq
