#include "pmkvq/kernels/sampling/device_sampler.h"

namespace pmkvq::internal {
namespace {
constexpr char kWhat[] = "drawing tokens";
}  // namespace

size_t DeviceSamplerScratchBytes(DeviceId device, int64_t /*vocab_size*/, int64_t /*max_rows*/) {
  ThrowNoBackend(device, kWhat);
}

void RunDeviceSampler(const float* /*logits*/, int64_t /*vocab_size*/, int64_t /*rows*/,
                      const DeviceDraw* /*draws*/, DeviceDrawn* /*out*/,
                      const DeviceBytes& /*scratch*/, Stream& stream) {
  ThrowNoBackend(stream.device(), kWhat);
}

}  // namespace pmkvq::internal
