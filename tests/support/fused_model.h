// Tiny models with fused matrices.
#pragma once

#include <algorithm>
#include <cstring>
#include <map>
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

// The tensors of a checkpoint, with those of a block's experts as newer versions of transformers
// hold them: gate_up_proj [n, 2 F, E] and down_proj [n, E, F] of all experts below "mlp.experts.".
inline TinyWeights WithFusedExperts(const std::map<std::string, TensorView>& plain) {
  struct Stack {
    TensorView like;
    std::map<std::pair<int, int>, TensorView> matrices;  // By expert and part.
  };
  const std::string experts = ".experts.";
  std::map<std::string, Stack> stacks;
  TinyWeights fused;
  for (const auto& [name, view] : plain) {
    const size_t begin = name.find(experts);
    if (begin == std::string::npos) {
      const size_t sparse = name.find("block_sparse_moe.gate.");
      const std::string known =
          sparse == std::string::npos ? name : name.substr(0, sparse) + "mlp.gate.weight";
      Tensor copy(view.dtype, view.shape);
      std::memcpy(copy.data(), view.data, view.num_bytes());
      fused.emplace(known, std::move(copy));
      continue;
    }
    const size_t number = begin + experts.size();
    const std::string matrix = name.substr(name.find('.', number) + 1);
    const bool is_down = matrix == "down_proj.weight" || matrix == "w2.weight";
    const bool is_up = matrix == "up_proj.weight" || matrix == "w3.weight";
    const std::string block = name.substr(0, name.find('.', sizeof("model.layers.") - 1));
    Stack& stack = stacks[block + ".mlp.experts." + (is_down ? "down_proj" : "gate_up_proj")];
    stack.like = view;
    stack.matrices[{std::stoi(name.substr(number)), is_up ? 1 : 0}] = view;
  }
  for (const auto& [name, stack] : stacks) {
    const int64_t num_experts = stack.matrices.rbegin()->first.first + 1;
    const int64_t parts = std::ssize(stack.matrices) / num_experts;
    Tensor whole(stack.like.dtype, {num_experts, parts * stack.like.shape[0], stack.like.shape[1]});
    std::byte* out = whole.data();
    for (const auto& [place, view] : stack.matrices) {
      std::memcpy(out, view.data, view.num_bytes());
      out += view.num_bytes();
    }
    fused.emplace(name, std::move(whole));
  }
  return fused;
}

}  // namespace pmkvq::testing_support
