// Order between a stream of ours and one that another library in this process made, PyTorch say:
// neither waits on the host. `foreign` is that library's handle of the stream, null being the
// device's default stream. Stream and event are of the device.
//
// Threads: as stream.h. Errors: DeviceError; Unsupported in a program without CUDA.
#pragma once

#include "pmkvq/tensor/device/stream.h"

namespace pmkvq {

// Makes the event a point in the foreign stream. Stream::Wait then orders ours behind it.
void RecordForeign(DeviceId device, StreamEvent& event, CUstream_st* foreign);
// What is launched on the foreign stream from now on waits for the event.
void MakeForeignWait(DeviceId device, CUstream_st* foreign, const StreamEvent& event);

}  // namespace pmkvq
