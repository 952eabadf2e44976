// Which device memory lies on and an op runs on. A device is a backend: a file per op that has code
// for it (cmake/backends.cmake lists them). Where a program was built without a backend, stub files
// take the place of these and throw Unsupported.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace pmkvq {

enum class Device : uint8_t { kCpu, kCuda };

struct DeviceId {
  Device device = Device::kCpu;
  int index = 0;  // 0 for the CPU.

  friend bool operator==(const DeviceId&, const DeviceId&) = default;
};

// "cpu", "cuda:1".
std::string NameOf(DeviceId id);

namespace internal {
// What stubs do: throws Unsupported, which names the device and `what` was asked of it.
[[noreturn]] void ThrowNoBackend(DeviceId id, std::string_view what);
}  // namespace internal

}  // namespace pmkvq
