#include "pmkvq/kv/packed/move_executor.h"

#include <atomic>
#include <cstring>

#include "pmkvq/base/interrupt.h"
#include "pmkvq/base/parallel.h"

namespace pmkvq {
namespace {

// A thread takes records that read so many bytes at a time: sharing out costs more than a small
// page.
constexpr size_t kSharedBytes = size_t{64} << 10;

// False where a quantised page's range does not fit.
bool Run(const PageOp& op, const PageCodec& codec, std::byte* arena) {
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

MoveExecutor::MoveExecutor(const PageCodec& codec, int num_threads)
    : codec_(codec), num_threads_(num_threads) {}

std::optional<UnfitPage> MoveExecutor::Execute(const MovePlan& plan, std::byte* arena) {
  const UncancelledScope whole;
  std::optional<UnfitPage> unfit;
  for (size_t i = 0; i < plan.num_waves(); ++i) {
    const std::span<const PageOp> wave = plan.wave(i);
    item_ends_.clear();
    size_t item_bytes = 0;
    for (size_t op = 0; op < wave.size(); ++op) {
      item_bytes += wave[op].source.bytes;
      if (item_bytes < kSharedBytes && op + 1 < wave.size()) continue;
      item_ends_.push_back(op + 1);
      item_bytes = 0;
    }
    std::atomic<size_t> first_unfit = wave.size();
    ParallelFor(num_threads_, static_cast<int64_t>(item_ends_.size()), [&](int64_t item, int) {
      const auto index = static_cast<size_t>(item);
      for (size_t op = index == 0 ? 0 : item_ends_[index - 1]; op < item_ends_[index]; ++op) {
        if (!Run(wave[op], codec_, arena)) LowerTo(op, first_unfit);
      }
    });
    if (unfit || first_unfit == wave.size()) continue;
    // Its 16-bit slot is as it was: nothing of this wave is written there.
    const PageOp& op = wave[first_unfit];
    unfit = UnfitPage{op.page, *codec_.FindUnfitGroup(arena + op.source.offset, op.axis)};
  }
  return unfit;
}

}  // namespace pmkvq
