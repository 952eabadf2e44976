#include "pmkvq/tensor/device/device.h"

#include <fmt/format.h>

#include "pmkvq/base/error.h"

namespace pmkvq {

std::string NameOf(DeviceId id) {
  return id.device == Device::kCpu ? "cpu" : fmt::format("cuda:{}", id.index);
}

namespace internal {

void ThrowNoBackend(DeviceId id, std::string_view what) {
  throw Unsupported(NameOf(id), fmt::format("{}: found a program built without code for this "
                                            "device, expected device cpu",
                                            what));
}

}  // namespace internal
}  // namespace pmkvq
