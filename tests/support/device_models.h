// Tiny models of sizes that the kernels of a device take.
#pragma once

#include <map>
#include <string>

#include "support/tiny_model.h"

namespace pmkvq::testing_support {

inline TinyModel WithHeads(TinyModel model, int64_t heads, int64_t kv_heads, int64_t head_dim) {
  model.vocab = 200;
  model.hidden = 96;
  model.inner = 136;
  model.heads = heads;
  model.kv_heads = kv_heads;
  model.head_dim = head_dim;
  return model;
}

// Latents of 128 + 64 values.
inline TinyModel WithLatents(TinyModel model) {
  model = WithHeads(model, 4, 4, 64);
  model.latent = 128;
  model.nope_dim = 32;
  model.rope_dim = 64;
  model.value_dim = 40;
  return model;
}

// One of each family and type of weights, without windows.
inline std::map<std::string, TinyModel> PlainDeviceModels() {
  std::map<std::string, TinyModel> models;
  models["llama_f32"] = WithHeads({}, 4, 2, 64);
  models["llama_bias_bf16"] =
      WithHeads({.qkv_bias = true, .o_bias = true, .dtype = DType::kBF16}, 6, 2, 64);
  models["mistral_f16_tied"] = WithHeads(
      {.architecture = "MistralForCausalLM", .tied = true, .dtype = DType::kF16}, 2, 1, 128);
  models["qwen2_bf16_tied"] = WithHeads(
      {.architecture = "Qwen2ForCausalLM", .tied = true, .qkv_bias = true, .dtype = DType::kBF16},
      7, 1, 128);
  models["qwen3_f32"] = WithHeads({.architecture = "Qwen3ForCausalLM", .qk_norm = true}, 6, 3, 64);
  models["llama_twelve_to_one_bf16"] = WithHeads({.dtype = DType::kBF16}, 12, 1, 64);
  return models;
}

}  // namespace pmkvq::testing_support
