#include "pmkvq/tensor/device/foreign_stream.h"

namespace pmkvq {

void RecordForeign(DeviceId device, StreamEvent& /*event*/, CUstream_st* /*foreign*/) {
  internal::ThrowNoBackend(device, "a stream");
}

void MakeForeignWait(DeviceId device, CUstream_st* /*foreign*/, const StreamEvent& /*event*/) {
  internal::ThrowNoBackend(device, "a stream");
}

}  // namespace pmkvq
