// Carries out move plans on the CPU, in memory that it is given.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "pmkvq/kv/packed/move_plan.h"
#include "pmkvq/kv/packed/page_codec.h"

namespace pmkvq {

// A page that kQuantize could not store: the range of a group does not fit the float type.
struct UnfitPage {
  uint32_t page = 0;  // PageOp::page
  UnfitGroup group;
};

class MoveExecutor {
 public:
  // Uses `num_threads` threads. The codec outlives the executor.
  MoveExecutor(const PageCodec& codec, int num_threads);

  // Carries out the waves of the plan one after the other, the records of a wave at once. Cannot be
  // cancelled: the plan's pages already have their new slots. Gives the first page in the order of
  // the plan whose range did not fit; it is stored with that range saturated (kv_quant.h).
  std::optional<UnfitPage> Execute(const MovePlan& plan, std::byte* arena);

 private:
  const PageCodec& codec_;
  int num_threads_;
  std::vector<size_t> item_ends_;  // A thread takes an item, some records of a wave, at a time.
};

}  // namespace pmkvq
