#include "pmkvq/kernels/routing/device_experts.h"

namespace pmkvq {

void RouteOnDevice(const RoutingRule& /*rule*/, const float* /*bias*/, const float* /*logits*/,
                   int64_t /*rows*/, const DeviceRouting& /*routing*/, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), "routing");
}

void MultiplyExperts(const RoutingRule& /*rule*/, int64_t /*rows*/,
                     const DeviceRouting& /*routing*/, const ExpertProduct& /*product*/,
                     Stream& stream) {
  internal::ThrowNoBackend(stream.device(), "products of experts");
}

void AddExperts(const RoutingRule& /*rule*/, int64_t /*rows*/, const DeviceRouting& /*routing*/,
                const float* /*y*/, int64_t /*width*/, float* /*x*/, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), "adding experts");
}

}  // namespace pmkvq
