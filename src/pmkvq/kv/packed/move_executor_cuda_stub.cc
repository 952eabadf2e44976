#include "pmkvq/kv/packed/move_executor.h"

namespace pmkvq::internal {

std::optional<UnfitPage> ExecuteMovesCuda(const MovePlan& /*plan*/, const DeviceBytes& arena) {
  ThrowNoBackend(arena.device, "quantising and moving pages");
}

}  // namespace pmkvq::internal
