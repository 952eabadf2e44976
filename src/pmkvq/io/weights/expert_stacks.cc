#include "pmkvq/io/weights/expert_stacks.h"

#include <fmt/format.h>

#include <string>
#include <utility>

#include "pmkvq/base/error.h"

namespace pmkvq::internal {

bool IsExpertStack(std::string_view canonical_name) {
  return canonical_name.find('*') != std::string_view::npos;
}

std::vector<StoredWeight> SplitExpertStacks(std::vector<StoredWeight> tensors,
                                            int64_t num_experts) {
  std::vector<StoredWeight> split;
  split.reserve(tensors.size());
  for (StoredWeight& tensor : tensors) {
    if (!IsExpertStack(tensor.name) || num_experts == 0) {
      split.push_back(std::move(tensor));
      continue;
    }
    if (!tensor.format.has_value() || tensor.shape.size() != 3 || tensor.shape[0] != num_experts) {
      throw InvalidInput(
          tensor.file,
          fmt::format("tensor '{}': found {} {}, expected matrices of {} experts",
                      tensor.stored_name, tensor.type, ToString(tensor.shape), num_experts));
    }
    const size_t star = tensor.name.find('*');
    const uint64_t num_bytes = tensor.num_bytes / static_cast<uint64_t>(num_experts);
    for (int64_t expert = 0; expert < num_experts; ++expert) {
      StoredWeight& weight = split.emplace_back(tensor);
      weight.name.replace(star, 1, std::to_string(expert));
      weight.shape.erase(weight.shape.begin());
      weight.data += static_cast<uint64_t>(expert) * num_bytes;
      weight.num_bytes = num_bytes;
    }
  }
  return split;
}

}  // namespace pmkvq::internal
