// The tensor types of a GGUF model.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pmkvq/io/checkpoint.h"
#include "pmkvq/io/json.h"

namespace pmkvq::cli {

// All tensors of one type.
struct TensorTypeUse {
  std::string type;
  int64_t num_tensors = 0;
  int64_t bytes = 0;
};

// Of all tensors in GGUF files, by type; none for other models.
std::vector<TensorTypeUse> TensorTypesOf(const Checkpoint& checkpoint);

// A table; nothing for no types.
std::string FormatTensorTypes(const std::vector<TensorTypeUse>& types);
// The member "tensor_types"; nothing for no types.
void WriteTensorTypes(const std::vector<TensorTypeUse>& types, JsonWriter& json);

}  // namespace pmkvq::cli
