// The tensor types of a GGUF model, how each is kept in memory, and what keeping it so costs.
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
  bool becomes_q8 = false;  // Else it is used as stored.
  // Of types that become q8: the greatest error that a weight gets by it; and the greatest share of
  // the largest weight of its tensor that such an error is.
  double max_added_error = 0;
  double max_added_share = 0;
};

// Of all matrices in GGUF files, by type; none for other models. Decodes and quantises what becomes
// q8, with progress on stderr, and keeps nothing of it. Throws InvalidInput for weights that are
// not finite.
std::vector<TensorTypeUse> TensorTypesOf(const Checkpoint& checkpoint, int threads);

// A table; nothing for no types.
std::string FormatTensorTypes(const std::vector<TensorTypeUse>& types);
// The member "tensor_types"; nothing for no types.
void WriteTensorTypes(const std::vector<TensorTypeUse>& types, JsonWriter& json);

}  // namespace pmkvq::cli
