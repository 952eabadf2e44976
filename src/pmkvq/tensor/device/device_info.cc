#include "pmkvq/tensor/device/device_info.h"

#include <fmt/format.h>

#include <charconv>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"

namespace pmkvq {

DeviceInfo Query(DeviceId id) { return internal::FindUsable(ListDevices(), id); }

std::optional<DeviceId> ParseDevice(std::string_view text) {
  constexpr std::string_view kCudaPrefix = "cuda:";
  if (text == "cpu") return DeviceId{};
  if (text == "cuda") return DeviceId{Device::kCuda, 0};
  if (!text.starts_with(kCudaPrefix)) return std::nullopt;
  text.remove_prefix(kCudaPrefix.size());
  DeviceId id{Device::kCuda, 0};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), id.index);
  if (error != std::errc() || end != text.data() + text.size() || id.index < 0) {
    return std::nullopt;
  }
  return id;
}

namespace internal {

DeviceInfo FindUsable(const DeviceList& list, DeviceId id) {
  PMKVQ_CHECK(id.device != Device::kCpu);
  if (list.versions.empty()) throw Unsupported(NameOf(id), list.problem);
  if (list.devices.empty()) {
    throw DeviceError(NameOf(id),
                      fmt::format("found no CUDA device: {}; use --device cpu", list.problem));
  }
  for (const DeviceInfo& info : list.devices) {
    if (info.id != id) continue;
    if (info.capability_major >= kLeastCapabilityMajor) return info;
    throw Unsupported(NameOf(id),
                      fmt::format("{}: found compute capability {}.{}, expected {}.0 or later; use "
                                  "--device cpu",
                                  info.name, info.capability_major, info.capability_minor,
                                  kLeastCapabilityMajor));
  }
  throw DeviceError(
      NameOf(id),
      fmt::format("found {} CUDA device{}, expected an index below {}", list.devices.size(),
                  list.devices.size() == 1 ? "" : "s", list.devices.size()));
}

}  // namespace internal
}  // namespace pmkvq
