// What a file in methods/ gives the registry: a name, a line of help, and a maker.
#pragma once

#include <memory>
#include <string>

#include "pmkvq/kv/cache_method.h"
#include "pmkvq/methods/spec.h"
#include "pmkvq/tensor/dtype.h"

namespace pmkvq {

struct MethodContext {
  KvGeometry geometry;
  DType float_type = DType::kF16;  // --kv-dtype: of values at full precision, and of metadata.

  // Bytes of `num_tokens` tokens of K, or of V, of one block at full precision.
  int64_t FloatBytes(int64_t num_tokens) const {
    return num_tokens * geometry.kv_dim() * static_cast<int64_t>(SizeOf(float_type));
  }
};

struct SimulatedMethod {
  std::string name;
  std::string description;  // One line for --help, with its keys.
  // Throws InvalidInput naming --kv for keys, words or values that the method does not have.
  std::shared_ptr<const CacheMethod> (*make)(const MethodSpec& spec, const MethodContext& context);
};

}  // namespace pmkvq
