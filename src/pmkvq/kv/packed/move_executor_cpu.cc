#include <algorithm>
#include <atomic>
#include <cstring>

#include "pmkvq/base/interrupt.h"
#include "pmkvq/base/parallel.h"
#include "pmkvq/kv/packed/move_executor.h"

namespace pmkvq::internal {
namespace {

// A thread takes records that read so many bytes at a time: sharing out costs more than a small
// page.
constexpr size_t kSharedBytes = size_t{64} << 10;

// False where a quantised page's range does not fit.
bool Run(const PageOp& op, const BlockCodecs& codecs, std::byte* arena) {
  const PageCodec& codec = codecs.of(op.side);
  const std::byte* source = arena + op.source.offset;
  std::byte* target = arena + op.target.offset;
  std::byte* metadata = arena + op.metadata.offset;
  switch (op.kind) {
    case PageOpKind::kCopy:
      std::memcpy(target, source, op.source.bytes);
      return true;
    case PageOpKind::kQuantize:
      return codec.Narrow(source, op.to_bits, op.axis, target, metadata);
    case PageOpKind::kHalve:
      codec.Halve(source, op.from_bits, op.to_bits, op.axis, target);
      return true;
    case PageOpKind::kExpand:
      codec.Expand({source, metadata, op.from_bits, op.axis}, target);
      return true;
  }
  return true;
}

void LowerTo(size_t value, std::atomic<size_t>& lowest) {
  size_t seen = lowest.load();
  while (value < seen && !lowest.compare_exchange_weak(seen, value)) {
  }
}

}  // namespace

std::optional<UnfitPage> ExecuteMovesCpu(const MovePlan& plan, const BlockCodecs& codecs,
                                         std::byte* arena, const ExecContext& exec) {
  const UncancelledScope whole;
  std::optional<UnfitPage> unfit;
  for (size_t i = 0; i < plan.num_waves(); ++i) {
    const std::span<const PageOp> wave = plan.wave(i);
    size_t largest = 1;
    for (const PageOp& op : wave) largest = std::max(largest, op.source.bytes);
    const auto grain = static_cast<int64_t>((kSharedBytes + largest - 1) / largest);
    std::atomic<size_t> first_unfit = wave.size();
    ParallelForRanges(exec.num_threads, std::ssize(wave), grain, [&](int64_t begin, int64_t end) {
      for (auto op = static_cast<size_t>(begin); op < static_cast<size_t>(end); ++op) {
        if (!Run(wave[op], codecs, arena)) LowerTo(op, first_unfit);
      }
    });
    if (unfit || first_unfit == wave.size()) continue;
    // Its 16-bit slot is as it was: nothing of this wave is written there.
    const PageOp& op = wave[first_unfit];
    unfit =
        UnfitPage{op.page, *codecs.of(op.side).FindUnfitGroup(arena + op.source.offset, op.axis)};
  }
  return unfit;
}

}  // namespace pmkvq::internal
