#include "pmkvq/io/weights/weight_source.h"

#include <fmt/format.h>

#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"

namespace pmkvq {

WeightSource::WeightSource(std::string place, std::string formats,
                           std::vector<StoredWeight> tensors)
    : place_(std::move(place)), formats_(std::move(formats)), tensors_(std::move(tensors)) {
  for (const StoredWeight& tensor : tensors_) {
    if (tensor.name.empty()) continue;
    const bool is_new = by_name_.emplace(tensor.name, &tensor).second;
    PMKVQ_CHECK_MSG(is_new, "two tensors have one canonical name");
  }
}

const StoredWeight* WeightSource::Find(std::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : it->second;
}

const StoredWeight& WeightSource::Get(std::string_view name, const Shape& shape) const {
  const StoredWeight* tensor = Find(name);
  if (tensor == nullptr) {
    throw InvalidInput(place_, fmt::format("tensor '{}': found nothing, expected {} {}",
                                           StoredName(name), formats_, ToString(shape)));
  }
  const std::string found =
      fmt::format("tensor '{}': found {} {}, expected {}", tensor->stored_name, tensor->type,
                  ToString(tensor->shape), formats_);
  const bool is_readable = tensor->format.has_value();
  if (!is_readable && tensor->data == nullptr) {
    throw Unsupported(tensor->file, found + ": weights of this type are not supported");
  }
  if (!is_readable || tensor->shape != shape) {
    throw InvalidInput(tensor->file, fmt::format("{} {}", found, ToString(shape)));
  }
  return *tensor;
}

}  // namespace pmkvq
