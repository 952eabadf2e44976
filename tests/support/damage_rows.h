// Tensors for DamageTensors: those of a MethodDriver's rows, and others by shape.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "pmkvq/research/methods/damage.h"
#include "support/cache_driver.h"

namespace pmkvq::testing_support {

using NamedTensors = std::map<std::string, Tensor>;

// Rows [T, heads, width] of one block as [1, heads, T, width].
inline Tensor ByHead(const std::vector<float>& rows, int64_t heads, int64_t width) {
  const int64_t tokens = std::ssize(rows) / (heads * width);
  Tensor tensor(DType::kF32, {1, heads, tokens, width});
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t head = 0; head < heads; ++head) {
      std::copy_n(rows.data() + (t * heads + head) * width, width,
                  tensor.As<float>() + (head * tokens + t) * width);
    }
  }
  return tensor;
}
// The way back, [T, heads, width].
inline std::vector<float> ByToken(const Tensor& tensor) {
  const int64_t heads = tensor.shape()[1];
  const int64_t tokens = tensor.shape()[2];
  const int64_t width = tensor.shape()[3];
  std::vector<float> rows(static_cast<size_t>(heads * tokens * width));
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t head = 0; head < heads; ++head) {
      std::copy_n(tensor.As<float>() + (head * tokens + t) * width, width,
                  rows.data() + (t * heads + head) * width);
    }
  }
  return rows;
}

// q, k and v of the first tokens of block 0, as MakeRows gives them.
inline NamedTensors TensorsOf(const UniformKvGeometry& geometry, int64_t num_tokens,
                              uint64_t seed = 3) {
  const Rows rows = MakeRows(geometry, seed, 0, 0, num_tokens);
  NamedTensors tensors;
  tensors.emplace("q", ByHead(rows.q, geometry.num_heads, geometry.head_dim));
  tensors.emplace("k", ByHead(rows.k, geometry.num_kv_heads, geometry.head_dim));
  tensors.emplace("v", ByHead(rows.v, geometry.num_kv_heads, geometry.head_dim));
  return tensors;
}

inline DamageResult Damaged(const NamedTensors& tensors, const std::string& spec,
                            int64_t prompt_len = 0, DType kv_dtype = DType::kF32) {
  const SafetensorsFile file = SafetensorsFile::FromMemory("in.safetensors", tensors);
  DamageOptions options;
  options.spec = spec;
  options.kv_dtype = kv_dtype;
  options.prompt_len = prompt_len;
  return DamageTensors(file, options);
}

}  // namespace pmkvq::testing_support
