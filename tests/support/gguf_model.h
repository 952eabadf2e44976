// The models of tiny_model.h as GGUF files, as llama.cpp's converter would write them.
#pragma once

#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "pmkvq/io/weights/gguf_names.h"
#include "pmkvq/io/weights/hugging_face_names.h"
#include "pmkvq/kernels/gemm/gemm.h"
#include "support/gguf_writer.h"
#include "support/random_blocks.h"
#include "support/tiny_model.h"

namespace pmkvq::testing_support {

inline std::string GgufArchitectureOf(const TinyModel& model) {
  if (model.architecture == "Qwen2ForCausalLM") return "qwen2";
  if (model.architecture == "Qwen3ForCausalLM") return "qwen3";
  if (model.architecture == "Qwen3MoeForCausalLM") return "qwen3moe";
  if (model.is_mla()) return "deepseek2";
  return "llama";
}

// Whether rows of this weight (a Hugging Face name) are stored in pairs.
inline bool HasPairedRows(const TinyModel& model, const std::string& name) {
  return GgufArchitectureOf(model) == "llama" &&
         (name.find("q_proj") != std::string::npos || name.find("k_proj") != std::string::npos);
}

// Row `row` of the file is this row of the model: heads' halves interleaved.
inline int64_t SplitRow(int64_t row, int64_t head_dim) {
  const int64_t in_head = row % head_dim;
  return row - in_head + in_head % 2 * (head_dim / 2) + in_head / 2;
}

inline GgufWriter GgufMetadataOf(const TinyModel& model) {
  const std::string architecture = GgufArchitectureOf(model);
  const std::string a = architecture + ".";
  GgufWriter writer;
  writer.Text("general.architecture", architecture);
  const auto number = [&](const char* key, int64_t value) {
    writer.U32(a + key, static_cast<uint32_t>(value));
  };
  number("block_count", model.layers);
  number("context_length", 4096);
  number("embedding_length", model.hidden);
  number("feed_forward_length", model.inner);
  number("attention.head_count", model.heads);
  number("attention.head_count_kv", model.kv_heads);
  if (model.is_mla()) {
    if (model.query_rank > 0) number("attention.q_lora_rank", model.query_rank);
    number("attention.kv_lora_rank", model.latent);
    number("attention.key_length", model.nope_dim + model.rope_dim);
    number("attention.value_length", model.value_dim);
    number("rope.dimension_count", model.rope_dim);
    if (model.shared_experts > 0) number("expert_shared_count", model.shared_experts);
  } else {
    number("attention.key_length", model.head_dim);
    number("attention.value_length", model.head_dim);
    number("rope.dimension_count", model.head_dim);
  }
  if (model.experts > 0) {
    number("expert_count", model.experts);
    number("expert_used_count", model.chosen);
    if (!model.is_mixtral()) {
      number("expert_feed_forward_length", model.expert_inner);
      writer.Bool(a + "expert_weights_norm", model.normalizes);
    }
  }
  writer.F32(a + "attention.layer_norm_rms_epsilon", 1e-5f);
  writer.F32(a + "rope.freq_base", 10000.0f);
  return writer;
}

inline void AddVector(GgufWriter& writer, const TinyModel& model, const std::string& name,
                      const Tensor& tensor) {
  const std::vector<double> values = Values(tensor);
  std::string data;
  for (size_t i = 0; i < values.size(); ++i) {
    const size_t from = HasPairedRows(model, name)
                            ? static_cast<size_t>(SplitRow(static_cast<int64_t>(i), model.head_dim))
                            : i;
    AppendBytes(data, static_cast<float>(values[from]));
  }
  writer.Tensor(GgufName(CanonicalNameOfHuggingFace(name, model.naming())), {values.size()},
                GgufTensorType::kF32, data);
}

// Collects matrices and writes them; those of the experts of a block become one tensor of three
// dimensions, or, without `stacks`, one for each of them, as in files of before April 2024. Experts
// come in their order.
class GgufMatrices {
 public:
  explicit GgufMatrices(bool stacks = true) : stacks_(stacks) {}

  void Add(const TinyModel& model, const std::string& name, int64_t rows, int64_t cols,
           GgufTensorType type, const std::string& data) {
    const std::string canonical = CanonicalNameOfHuggingFace(name, model.naming());
    std::string stored = GgufName(canonical);
    constexpr std::string_view kOfExperts = ".experts.";
    const size_t at = canonical.find(kOfExperts);
    const bool of_experts = at != std::string::npos;
    if (of_experts && !stacks_) {  // "ffn_gate_exps.weight" -> "ffn_gate.3.weight"
      const std::string number = canonical.substr(at + kOfExperts.size());
      stored.replace(stored.find("_exps"), 5, "." + number.substr(0, number.find('.')));
    }
    const auto size = [](int64_t value) { return static_cast<uint64_t>(value); };
    Matrix& matrix =
        matrices_.try_emplace(stored, Matrix{{size(cols), size(rows)}, type, {}, 0}).first->second;
    matrix.data += data;
    ++matrix.count;
    matrix.is_stack = of_experts && stacks_;
  }
  void WriteTo(GgufWriter& writer) {
    for (auto& [name, matrix] : matrices_) {
      if (matrix.is_stack) matrix.sizes.push_back(matrix.count);
      writer.Tensor(name, matrix.sizes, matrix.type, matrix.data);
    }
  }

 private:
  struct Matrix {
    std::vector<uint64_t> sizes;
    GgufTensorType type;
    std::string data;
    uint64_t count = 0;
    bool is_stack = false;
  };
  const bool stacks_;
  std::map<std::string, Matrix> matrices_;
};

// Matrices in the model's dtype, vectors as F32.
inline GgufWriter GgufOf(const TinyModel& model, const TinyWeights& weights) {
  GgufWriter writer = GgufMetadataOf(model);
  GgufMatrices matrices;
  for (const auto& [name, tensor] : weights) {
    if (tensor.shape().size() == 1) {
      AddVector(writer, model, name, tensor);
      continue;
    }
    const int64_t rows = tensor.shape()[0];
    const size_t row_bytes = tensor.view().num_bytes() / static_cast<size_t>(rows);
    std::string data;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t from = HasPairedRows(model, name) ? SplitRow(row, model.head_dim) : row;
      data.append(
          reinterpret_cast<const char*>(tensor.view().data) + static_cast<size_t>(from) * row_bytes,
          row_bytes);
    }
    const GgufTensorType type = tensor.dtype() == DType::kF32   ? GgufTensorType::kF32
                                : tensor.dtype() == DType::kF16 ? GgufTensorType::kF16
                                                                : GgufTensorType::kBF16;
    matrices.Add(model, name, rows, tensor.shape()[1], type, data);
  }
  matrices.WriteTo(writer);
  return writer;
}

// All matrices but routers as random blocks of `type`; `weights` becomes their values, in the
// model's order, as F32. Rows have to be whole blocks.
// `stacks`: as in GgufMatrices. Matrices whose names contain a key of `others` are of its type.
inline GgufWriter RandomGgufOf(const TinyModel& model, GgufTensorType most, TinyWeights& weights,
                               bool stacks = true,
                               const std::map<std::string, GgufTensorType>& others = {}) {
  Random random(model.seed + static_cast<uint64_t>(most));
  GgufWriter writer = GgufMetadataOf(model);
  GgufMatrices matrices(stacks);
  for (auto& [name, tensor] : weights) {
    if (tensor.shape().size() == 1) {
      AddVector(writer, model, name, tensor);
      continue;
    }
    const int64_t rows = tensor.shape()[0];
    const int64_t cols = tensor.shape()[1];
    GgufTensorType type = most;
    for (const auto& [part, other] : others) {
      if (name.find(part) != std::string::npos) type = other;
    }
    const WeightFormat format = *WeightFormatNamed(LayoutOf(type).name);
    if (name.ends_with(model.router() + ".weight")) {
      const auto* const bytes = reinterpret_cast<const char*>(tensor.view().data);
      matrices.Add(model, name, rows, cols, GgufTensorType::kF32,
                   {bytes, tensor.view().num_bytes()});
      continue;
    }
    const std::string data = RandomBlocks(format, rows * cols, random);
    matrices.Add(model, name, rows, cols, type, data);
    const WeightView stored{reinterpret_cast<const std::byte*>(data.data()), format, rows, cols};
    tensor = Tensor(DType::kF32, {rows, cols});
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t to = HasPairedRows(model, name) ? SplitRow(row, model.head_dim) : row;
      for (int64_t col = 0; col < cols; ++col) {
        tensor.As<float>()[to * cols + col] = static_cast<float>(ref::WeightAt(stored, row, col));
      }
    }
  }
  matrices.WriteTo(writer);
  return writer;
}

}  // namespace pmkvq::testing_support
