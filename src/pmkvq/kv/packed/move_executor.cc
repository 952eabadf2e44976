#include "pmkvq/kv/packed/move_executor.h"

#include "pmkvq/base/check.h"

namespace pmkvq {

std::optional<UnfitPage> ExecuteMoves(const MovePlan& plan, const BlockCodecs& codecs,
                                      const DeviceBytes& arena, const ExecContext& exec,
                                      uint32_t* unfit_word) {
  for (size_t i = 0; i < plan.num_waves(); ++i) {
    for (const PageOp& op : plan.wave(i)) {
      for (const ArenaRange& range : {op.source, op.target, op.metadata}) {
        PMKVQ_CHECK(range.bytes <= arena.num_bytes &&
                    range.offset <= arena.num_bytes - range.bytes);
      }
    }
  }
  switch (arena.device.device) {
    case Device::kCpu:
      return internal::ExecuteMovesCpu(plan, codecs, arena.data, exec);
    case Device::kCuda:
      return internal::ExecuteMovesCuda(plan, codecs, arena, exec, unfit_word);
  }
  return std::nullopt;
}

}  // namespace pmkvq
