#include "pmkvq/tensor/device/foreign_stream.h"

#include <cuda_runtime_api.h>

#include "pmkvq/tensor/device/cuda_runtime.h"

namespace pmkvq {

// The default stream is that of the thread's device, so both calls name the device.
void RecordForeign(DeviceId device, StreamEvent& event, CUstream_st* foreign) {
  const internal::CudaDeviceScope scope(device);
  internal::CheckCuda(cudaEventRecord(event.handle(), foreign), "recording an event");
}

void MakeForeignWait(DeviceId device, CUstream_st* foreign, const StreamEvent& event) {
  const internal::CudaDeviceScope scope(device);
  internal::CheckCuda(cudaStreamWaitEvent(foreign, event.handle()), "waiting for an event");
}

}  // namespace pmkvq
