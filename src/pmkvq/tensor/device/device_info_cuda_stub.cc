#include "pmkvq/tensor/device/device_info.h"

namespace pmkvq {

DeviceList ListDevices() {
  return {.problem = "this build has no CUDA; build with ./run build --cuda (preset cuda)",
          .versions = "",
          .devices = {}};
}

std::string CudaVersionText() { return "none"; }

}  // namespace pmkvq
