// Tiny models as Phi-3 stores them.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "support/tiny_model.h"

namespace pmkvq::testing_support {

// The same weights with the fused matrices of Phi-3; F32.
inline TinyWeights FusedAsPhi3(const TinyModel& model, const TinyWeights& plain) {
  TinyWeights fused = plain;
  const auto fuse = [&](const std::string& name, const std::vector<std::string>& parts) {
    std::vector<float> values;
    for (const std::string& part : parts) {
      const Tensor& tensor = plain.at(part);
      values.insert(values.end(), tensor.As<float>(), tensor.As<float>() + tensor.num_elements());
      fused.erase(part);
    }
    Tensor whole(DType::kF32, {std::ssize(values) / model.hidden, model.hidden});
    std::copy(values.begin(), values.end(), whole.As<float>());
    fused.emplace(name, std::move(whole));
  };
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    const std::string attention = "model.layers." + std::to_string(layer) + ".self_attn.";
    const std::string mlp = "model.layers." + std::to_string(layer) + ".mlp.";
    fuse(attention + "qkv_proj.weight",
         {attention + "q_proj.weight", attention + "k_proj.weight", attention + "v_proj.weight"});
    fuse(mlp + "gate_up_proj.weight", {mlp + "gate_proj.weight", mlp + "up_proj.weight"});
  }
  return fused;
}

}  // namespace pmkvq::testing_support
