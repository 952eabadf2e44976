// Carries out move plans in the memory of a device.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "pmkvq/kv/packed/move_plan.h"
#include "pmkvq/kv/packed/page_codec.h"
#include "pmkvq/tensor/device/buffer.h"
#include "pmkvq/tensor/device/exec_context.h"

namespace pmkvq {

// A page that kQuantize could not store: the range of a group does not fit the float type.
struct UnfitPage {
  uint32_t page = 0;  // PageOp::page
  UnfitGroup group;
};

// The codecs of a block's two streams, which must outlive this.
struct BlockCodecs {
  BlockCodecs(const PageCodec& both) : sides{&both, &both} {}  // NOLINT: a codec serves as both.
  BlockCodecs(const PageCodec& k, const PageCodec& v, bool of_latents)
      : sides{&k, &v}, are_latents(of_latents) {}
  const PageCodec& of(Side side) const { return *sides[side]; }

  std::array<const PageCodec*, 2> sides;
  bool are_latents = false;  // In fragment order both streams have tokens as rows then.
};

// Carries out the waves of the plan one after the other, the records of a wave at once, on the
// arena's device. Cannot be cancelled: the plan's pages already have their new slots. Gives the
// first page in the order of the plan whose range did not fit; it is stored with that range
// saturated (kv_quant.h). On CUDA pages are in fragment order, the context has a stream of the
// arena's device, and the host waits only where a plan quantises, once per wave. Throws Unsupported
// when the program has no code for the device, or CUDA none for the pages (head size, float type,
// keys per channel).
//
// unfit_word, on CUDA: a word of the device that becomes less than it is (all bits) where a page
// did not fit; then nobody waits, and nothing is returned.
std::optional<UnfitPage> ExecuteMoves(const MovePlan& plan, const BlockCodecs& codecs,
                                      const DeviceBytes& arena, const ExecContext& exec,
                                      uint32_t* unfit_word = nullptr);

namespace internal {
// Its part of each backend.
std::optional<UnfitPage> ExecuteMovesCpu(const MovePlan& plan, const BlockCodecs& codecs,
                                         std::byte* arena, const ExecContext& exec);
std::optional<UnfitPage> ExecuteMovesCuda(const MovePlan& plan, const BlockCodecs& codecs,
                                          const DeviceBytes& arena, const ExecContext& exec,
                                          uint32_t* unfit_word);
}  // namespace internal

}  // namespace pmkvq
