// Which devices this program can use.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pmkvq/tensor/device/device.h"

namespace pmkvq {

struct DeviceInfo {
  DeviceId id;
  std::string name;
  int capability_major = 0;  // Compute capability.
  int capability_minor = 0;
  int num_multiprocessors = 0;
  size_t l2_bytes = 0;
  size_t total_bytes = 0;
  size_t free_bytes = 0;  // When it was asked.
};

// The oldest compute capability that the kernels run on.
inline constexpr int kLeastCapabilityMajor = 8;

// All devices but the CPU. Without any, `problem` says why: the program has no code for them, there
// is no driver, or no device.
struct DeviceList {
  std::string problem;
  std::string versions;  // "CUDA 13.0, driver 13.0"; empty without code for devices.
  std::vector<DeviceInfo> devices;
};

// Never throws DeviceError: what is wrong is part of the answer.
DeviceList ListDevices();

// What --version says: the toolkit that the program was built with, "none" without CUDA.
std::string CudaVersionText();

// Throws DeviceError when there is no such device, Unsupported where the program has no code for
// it or its capability is too low. The CPU is refused as a caller's bug.
DeviceInfo Query(DeviceId id);

// "cpu", "cuda" (its first device) or "cuda:N"; nothing for another text.
std::optional<DeviceId> ParseDevice(std::string_view text);

namespace internal {
// What Query decides, on a list that is given.
DeviceInfo FindUsable(const DeviceList& list, DeviceId id);
}  // namespace internal

}  // namespace pmkvq
