#include "pmkvq/kv/packed/move_executor.h"

namespace pmkvq::internal {

std::optional<UnfitPage> ExecuteMovesCuda(const MovePlan& /*plan*/, const BlockCodecs& /*codecs*/,
                                          const DeviceBytes& arena, const ExecContext& /*exec*/,
                                          uint32_t* /*unfit_word*/) {
  ThrowNoBackend(arena.device, "quantising and moving pages");
}

}  // namespace pmkvq::internal
