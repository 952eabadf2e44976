// Files that hold a matrix of all experts of a block as one tensor of three dimensions. Internal to
// io/weights/.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "pmkvq/io/weights/weight_source.h"

namespace pmkvq::internal {

// The canonical name of a stack has '*' in the place of the expert: "blocks.3.mlp.experts.*.gate".
bool IsExpertStack(std::string_view canonical_name);

// Lists the experts of each stack [num_experts, rows, cols] one by one, in its place: matrices that
// are views of the stack's bytes. Throws InvalidInput for another shape, naming file, tensor, found
// and expected. With num_experts = 0 stacks stay as they are, weights that no model asks for.
std::vector<StoredWeight> SplitExpertStacks(std::vector<StoredWeight> tensors, int64_t num_experts);

}  // namespace pmkvq::internal
