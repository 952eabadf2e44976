// Random checkpoints of a few kilobytes for tests, and an oracle that computes their logits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <numbers>
#include <string>
#include <vector>

#include "pmkvq/base/float16.h"
#include "pmkvq/base/random.h"
#include "pmkvq/io/safetensors.h"
#include "pmkvq/io/weights/hugging_face_names.h"
#include "pmkvq/tensor/tensor.h"
#include "support/temp_folder.h"

namespace pmkvq::testing_support {

struct TinyModel {
  std::string architecture = "LlamaForCausalLM";
  int64_t vocab = 48;
  int64_t hidden = 32;
  int64_t inner = 56;
  int64_t layers = 3;
  int64_t heads = 4;
  int64_t kv_heads = 2;
  int64_t head_dim = 16;
  int64_t max_positions = 4096;
  bool tied = false;
  bool qkv_bias = false;
  bool o_bias = false;
  bool qk_norm = false;
  DType dtype = DType::kF32;
  uint64_t seed = 1;
  int64_t window = 0;       // Sliding window; 0: none.
  int64_t full_layers = 0;  // Blocks in front that have none (Qwen's max_window_layers).
  // Of the oracle: radians per position of each pair of a head [D/2]; empty: those of theta 10000.
  // And what the rotated values are multiplied with.
  std::vector<double> frequencies = {};
  double rope_factor = 1;
  // Gemma 3: norms of weight 1 + w in front of and behind each part, GELU, the embedding times
  // sqrt(E), scores times kQueryScalar ** -0.5, and theta kLocalTheta in blocks with a window.
  bool is_gemma = false;
  // Mixtures of experts, in all blocks but `dense_layer`. Mixtral has them in all, of the size
  // `inner`, and normalises their weights.
  int64_t experts = 0;
  int64_t chosen = 2;
  int64_t expert_inner = 20;
  bool normalizes = false;
  int64_t dense_layer = -1;
  int64_t window_pattern = 0;  // Of is_gemma: each so many-th block has no window, in place of
                               // full_layers.
  // Latent attention (DeepSeek), where latent > 0: heads have nope_dim + rope_dim values of keys,
  // of which the last have RoPE, and value_dim of values. kv_heads and head_dim are not used.
  int64_t latent = 0;
  int64_t query_rank = 0;  // 0: queries go through no latent.
  int64_t nope_dim = 8;
  int64_t rope_dim = 8;
  int64_t value_dim = 12;
  bool rope_in_pairs = true;
  int64_t shared_experts = 0;  // Of latent attention, beside `experts`.
  static constexpr double kQueryScalar = 20;
  static constexpr double kLocalTheta = 500;

  bool has_window(int64_t layer) const {
    if (window == 0) return false;
    return window_pattern > 0 ? (layer + 1) % window_pattern != 0 : layer >= full_layers;
  }
  bool is_mla() const { return latent > 0; }
  int64_t query_dim() const { return heads * (is_mla() ? nope_dim + rope_dim : head_dim); }
  bool is_mixtral() const { return architecture == "MixtralForCausalLM"; }
  bool has_experts(int64_t layer) const { return experts > 0 && layer != dense_layer; }
  int64_t expert_size() const { return is_mixtral() ? inner : expert_inner; }
  // What checkpoints of the architecture call the router, and the matrices of an expert.
  std::string router() const { return is_mixtral() ? "block_sparse_moe.gate" : "mlp.gate"; }
  std::string expert(int64_t index, const std::string& matrix) const {
    if (!is_mixtral()) return "mlp.experts." + std::to_string(index) + "." + matrix + "_proj";
    return "block_sparse_moe.experts." + std::to_string(index) +
           (matrix == "gate" ? ".w1"
            : matrix == "up" ? ".w3"
                             : ".w2");
  }
  HuggingFaceNaming naming() const {
    return is_gemma       ? HuggingFaceNaming::kPostNorms
           : is_mixtral() ? HuggingFaceNaming::kSparseMoe
                          : HuggingFaceNaming::kUsual;
  }
  int64_t q_dim() const { return heads * head_dim; }
  int64_t kv_dim() const { return kv_heads * head_dim; }
};

// One model for each architecture and variant that a config can ask for.
inline std::map<std::string, TinyModel> TinyModels() {
  std::map<std::string, TinyModel> models;
  models["llama_f32"] = {};
  models["llama_bias_bf16"] = {.qkv_bias = true, .o_bias = true, .dtype = DType::kBF16};
  models["mistral_f16_tied"] = {
      .architecture = "MistralForCausalLM", .tied = true, .dtype = DType::kF16};
  models["qwen2_bf16_tied"] = {.architecture = "Qwen2ForCausalLM",
                               .heads = 2,
                               .kv_heads = 1,
                               .tied = true,
                               .qkv_bias = true,
                               .dtype = DType::kBF16};
  models["qwen3_f32"] = {.architecture = "Qwen3ForCausalLM",
                         .heads = 6,
                         .kv_heads = 2,
                         .head_dim = 8,
                         .qk_norm = true};
  models["mistral_window_f32"] = {.architecture = "MistralForCausalLM", .window = 9};
  models["qwen2_window_bf16"] = {.architecture = "Qwen2ForCausalLM",
                                 .qkv_bias = true,
                                 .dtype = DType::kBF16,
                                 .window = 20,
                                 .full_layers = 2};
  models["mixtral_f32"] = {.architecture = "MixtralForCausalLM", .inner = 28, .experts = 5};
  models["qwen3_moe_bf16"] = {.architecture = "Qwen3MoeForCausalLM",
                              .qk_norm = true,
                              .dtype = DType::kBF16,
                              .experts = 9,
                              .chosen = 3,
                              .dense_layer = 1};
  models["qwen3_moe_normalized_f32"] = {
      .architecture = "Qwen3MoeForCausalLM", .qk_norm = true, .experts = 6, .normalizes = true};
  // Of V2 with a dense block in front, and as V3, without experts.
  models["deepseek2_f32"] = {.architecture = "DeepseekV2ForCausalLM",
                             .experts = 6,
                             .dense_layer = 0,
                             .latent = 16,
                             .shared_experts = 2};
  models["deepseek3_bf16"] = {.architecture = "DeepseekV3ForCausalLM",
                              .dtype = DType::kBF16,
                              .latent = 24,
                              .query_rank = 20,
                              .nope_dim = 16,
                              .value_dim = 40,
                              .rope_in_pairs = false};
  models["gemma3_f32"] = {.architecture = "Gemma3ForCausalLM",
                          .tied = true,
                          .qk_norm = true,
                          .window = 9,
                          .full_layers = 1,
                          .is_gemma = true};
  models["gemma3_bf16"] = models["gemma3_f32"];
  models["gemma3_bf16"].dtype = DType::kBF16;
  return models;
}

using TinyWeights = std::map<std::string, Tensor>;

inline double NormalDraw(Random& random) {
  const double radius = std::sqrt(-2.0 * std::log(1.0 - random.Uniform()));
  return radius * std::cos(6.283185307179586 * random.Uniform());
}

// Values mean + spread * normal, rounded to dtype.
inline Tensor RandomTensor(DType dtype, const Shape& shape, double mean, double spread,
                           Random& random) {
  Tensor tensor(dtype, shape);
  for (int64_t i = 0; i < tensor.num_elements(); ++i) {
    const auto value = static_cast<float>(mean + spread * NormalDraw(random));
    std::byte* place = tensor.data() + static_cast<size_t>(i) * SizeOf(dtype);
    const BF16 bf16 = ToBF16(value);
    const F16 f16 = ToF16(value);
    if (dtype == DType::kF32) std::memcpy(place, &value, sizeof(value));
    if (dtype == DType::kBF16) std::memcpy(place, &bf16, sizeof(bf16));
    if (dtype == DType::kF16) std::memcpy(place, &f16, sizeof(f16));
  }
  return tensor;
}

inline std::vector<double> Values(const Tensor& tensor) {
  std::vector<double> values;
  for (int64_t i = 0; i < tensor.num_elements(); ++i) {
    const std::byte* place = tensor.view().data + static_cast<size_t>(i) * SizeOf(tensor.dtype());
    float f32;
    BF16 bf16;
    F16 f16;
    std::memcpy(&bf16, place, sizeof(bf16));
    std::memcpy(&f16, place, sizeof(f16));
    if (tensor.dtype() == DType::kF32) std::memcpy(&f32, place, sizeof(f32));
    values.push_back(tensor.dtype() == DType::kF32    ? f32
                     : tensor.dtype() == DType::kBF16 ? ToFloat(bf16)
                                                      : ToFloat(f16));
  }
  return values;
}

inline TinyWeights MakeTinyWeights(const TinyModel& model) {
  Random random(model.seed);
  TinyWeights weights;
  const auto matrix = [&](const std::string& name, int64_t rows, int64_t cols, double spread) {
    weights[name] = RandomTensor(model.dtype, {rows, cols}, 0.0, spread, random);
  };
  const auto norm = [&](const std::string& name, int64_t size) {
    weights[name] = RandomTensor(model.dtype, {size}, model.is_gemma ? 0.0 : 1.0, 0.2, random);
  };
  const auto linear = [&](const std::string& name, int64_t rows, int64_t cols, bool bias) {
    matrix(name + ".weight", rows, cols, 1.2 / std::sqrt(static_cast<double>(cols)));
    if (bias) weights[name + ".bias"] = RandomTensor(model.dtype, {rows}, 0.0, 0.3, random);
  };
  matrix("model.embed_tokens.weight", model.vocab, model.hidden, 1.0);
  if (!model.tied) linear("lm_head", model.vocab, model.hidden, false);
  norm("model.norm.weight", model.hidden);
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    const std::string block = "model.layers." + std::to_string(layer) + ".";
    norm(block + "input_layernorm.weight", model.hidden);
    if (model.is_mla()) {
      const std::string attention = block + "self_attn.";
      if (model.query_rank > 0) {
        linear(attention + "q_a_proj", model.query_rank, model.hidden, false);
        norm(attention + "q_a_layernorm.weight", model.query_rank);
        linear(attention + "q_b_proj", model.query_dim(), model.query_rank, false);
      } else {
        linear(attention + "q_proj", model.query_dim(), model.hidden, false);
      }
      linear(attention + "kv_a_proj_with_mqa", model.latent + model.rope_dim, model.hidden, false);
      norm(attention + "kv_a_layernorm.weight", model.latent);
      linear(attention + "kv_b_proj", model.heads * (model.nope_dim + model.value_dim),
             model.latent, false);
      linear(attention + "o_proj", model.hidden, model.heads * model.value_dim, false);
    } else {
      linear(block + "self_attn.q_proj", model.q_dim(), model.hidden, model.qkv_bias);
      linear(block + "self_attn.k_proj", model.kv_dim(), model.hidden, model.qkv_bias);
      linear(block + "self_attn.v_proj", model.kv_dim(), model.hidden, model.qkv_bias);
      linear(block + "self_attn.o_proj", model.hidden, model.q_dim(), model.o_bias);
    }
    if (model.qk_norm) {
      norm(block + "self_attn.q_norm.weight", model.head_dim);
      norm(block + "self_attn.k_norm.weight", model.head_dim);
    }
    norm(block + "post_attention_layernorm.weight", model.hidden);
    if (model.is_gemma) {
      norm(block + "pre_feedforward_layernorm.weight", model.hidden);
      norm(block + "post_feedforward_layernorm.weight", model.hidden);
    }
    if (model.has_experts(layer)) {
      linear(block + model.router(), model.experts, model.hidden, false);
      for (int64_t i = 0; i < model.experts; ++i) {
        linear(block + model.expert(i, "gate"), model.expert_size(), model.hidden, false);
        linear(block + model.expert(i, "up"), model.expert_size(), model.hidden, false);
        linear(block + model.expert(i, "down"), model.hidden, model.expert_size(), false);
      }
      if (model.shared_experts > 0) {
        const int64_t inner = model.shared_experts * model.expert_size();
        linear(block + "mlp.shared_experts.gate_proj", inner, model.hidden, false);
        linear(block + "mlp.shared_experts.up_proj", inner, model.hidden, false);
        linear(block + "mlp.shared_experts.down_proj", model.hidden, inner, false);
      }
      continue;
    }
    linear(block + "mlp.gate_proj", model.inner, model.hidden, false);
    linear(block + "mlp.up_proj", model.inner, model.hidden, false);
    linear(block + "mlp.down_proj", model.hidden, model.inner, false);
  }
  return weights;
}

inline std::string TinyConfigJson(const TinyModel& model) {
  const auto field = [](const std::string& name, int64_t value) {
    return "\"" + name + "\": " + std::to_string(value) + ",\n";
  };
  std::string gemma;
  if (model.is_gemma) {
    gemma = "\"hidden_activation\": \"gelu_pytorch_tanh\",\n\"query_pre_attn_scalar\": " +
            std::to_string(TinyModel::kQueryScalar) +
            ",\n\"rope_local_base_freq\": " + std::to_string(TinyModel::kLocalTheta) + ",\n";
    std::string types;
    for (int64_t layer = 0; layer < model.layers; ++layer) {
      types += types.empty() ? "" : ", ";
      types += model.has_window(layer) ? "\"sliding_attention\"" : "\"full_attention\"";
    }
    gemma += model.window_pattern > 0 ? field("sliding_window_pattern", model.window_pattern)
                                      : "\"layer_types\": [" + types + "],\n";
  }
  std::string moe;
  if (model.is_mla()) {
    const std::string rank = model.query_rank > 0 ? std::to_string(model.query_rank) : "null";
    moe = "\"q_lora_rank\": " + rank +
          ",\n\"rope_interleave\": " + (model.rope_in_pairs ? "true" : "false") + ",\n" +
          field("kv_lora_rank", model.latent) + field("qk_nope_head_dim", model.nope_dim) +
          field("qk_rope_head_dim", model.rope_dim) + field("v_head_dim", model.value_dim);
    moe += model.experts == 0 ? "\"n_routed_experts\": null,\n"
                              : field("n_routed_experts", model.experts) +
                                    field("num_experts_per_tok", model.chosen) +
                                    field("n_shared_experts", model.shared_experts) +
                                    field("moe_intermediate_size", model.expert_inner) +
                                    field("first_k_dense_replace", model.dense_layer + 1);
  } else if (model.experts > 0) {
    moe = field(model.is_mixtral() ? "num_local_experts" : "num_experts", model.experts) +
          field("num_experts_per_tok", model.chosen);
    if (!model.is_mixtral()) {
      moe += field("moe_intermediate_size", model.expert_inner) +
             "\"norm_topk_prob\": " + (model.normalizes ? "true" : "false") +
             ",\n\"mlp_only_layers\": [" +
             (model.dense_layer < 0 ? "" : std::to_string(model.dense_layer)) + "],\n";
    }
  }
  const bool bias_field = model.architecture != "Qwen2ForCausalLM" && model.qkv_bias;
  return "{\"architectures\": [\"" + model.architecture + "\"],\n" +
         field("vocab_size", model.vocab) + field("hidden_size", model.hidden) +
         field("intermediate_size", model.inner) + field("num_hidden_layers", model.layers) +
         field("num_attention_heads", model.heads) +
         field("num_key_value_heads", model.is_mla() ? model.heads : model.kv_heads) +
         field("head_dim", model.head_dim) + field("max_position_embeddings", model.max_positions) +
         gemma + moe + "\"hidden_act\": \"silu\",\n" +
         "\"rms_norm_eps\": 1e-5, \"rope_theta\": 10000.0,\n" +
         (model.window > 0 ? field("sliding_window", model.window) +
                                 field("max_window_layers", model.full_layers) +
                                 "\"use_sliding_window\": true,\n"
                           : "") +
         "\"attention_bias\": " + (bias_field ? "true" : "false") + ",\n" +
         "\"tie_word_embeddings\": " + (model.tied ? "true" : "false") + "}\n";
}

// Writes config.json and model.safetensors.
inline void WriteTinyModel(const TinyModel& model, const TinyWeights& weights,
                           const TempFolder& folder) {
  folder.Write("config.json", TinyConfigJson(model));
  std::map<std::string, TensorView> views;
  for (const auto& [name, tensor] : weights) views[name] = tensor.view();
  WriteSafetensors(folder.File("model.safetensors"), views);
}

// Logits [T, V] of a whole sequence at positions 0, 1, ..., in double, one sum at a time, from
// the definition of the architecture. Shares no code with the library's forward passes.
class TinyModelOracle {
 public:
  TinyModelOracle(const TinyModel& model, const TinyWeights& weights)
      : model_(model), weights_(weights) {}

  std::vector<double> Logits(const std::vector<int32_t>& tokens) const {
    const std::vector<double> embedding = Weight("model.embed_tokens.weight");
    std::vector<Row> x;
    for (const int32_t token : tokens) {
      const auto begin = embedding.begin() + token * model_.hidden;
      x.emplace_back(begin, begin + model_.hidden);
      for (double& value : x.back()) value *= EmbeddingFactor();
    }
    for (int64_t layer = 0; layer < model_.layers; ++layer) {
      const std::string block = "model.layers." + std::to_string(layer) + ".";
      if (model_.is_mla()) {
        AddLatentAttention(block, x);
      } else {
        AddAttention(block, model_.has_window(layer) ? model_.window : 0, x);
      }
      for (Row& row : x) AddMlp(block, row);
    }
    std::vector<double> logits;
    for (const Row& row : x) {
      const Row out = Linear(model_.tied ? "model.embed_tokens" : "lm_head",
                             Norm("model.norm.weight", row), model_.vocab);
      logits.insert(logits.end(), out.begin(), out.end());
    }
    return logits;
  }

 private:
  using Row = std::vector<double>;

  // Rounded to the type of the embedding.
  double EmbeddingFactor() const {
    if (!model_.is_gemma) return 1;
    const auto factor = static_cast<float>(std::sqrt(static_cast<double>(model_.hidden)));
    return model_.dtype == DType::kBF16 ? ToFloat(ToBF16(factor)) : factor;
  }

  Row Weight(const std::string& name) const { return Values(weights_.at(name)); }

  Row Linear(const std::string& name, const Row& x, int64_t size) const {
    const Row weight = Weight(name + ".weight");
    Row y =
        weights_.contains(name + ".bias") ? Weight(name + ".bias") : Row(static_cast<size_t>(size));
    for (size_t n = 0; n < y.size(); ++n) {
      for (size_t k = 0; k < x.size(); ++k) y[n] += weight[n * x.size() + k] * x[k];
    }
    return y;
  }

  Row Norm(const std::string& name, const Row& x, double eps = 1e-5) const {
    const Row weight = Weight(name);
    double sum = 0.0;
    for (const double value : x) sum += value * value;
    Row y = x;
    for (size_t i = 0; i < x.size(); ++i) {
      y[i] *= ((model_.is_gemma ? 1.0 : 0.0) + weight[i]) /
              std::sqrt(sum / static_cast<double>(x.size()) + eps);
    }
    return y;
  }

  // Per-head norm where the architecture has one, then the rotation.
  void PrepareHeads(const std::string& norm, int64_t position, bool is_local, Row& x) const {
    const double theta = model_.is_gemma && is_local ? TinyModel::kLocalTheta : 10000.0;
    const auto dim = static_cast<size_t>(model_.head_dim);
    for (size_t begin = 0; begin < x.size(); begin += dim) {
      Row head(x.begin() + static_cast<int64_t>(begin),
               x.begin() + static_cast<int64_t>(begin + dim));
      if (model_.qk_norm) head = Norm(norm, head);
      for (size_t i = 0; i < dim / 2; ++i) {
        const double frequency =
            model_.frequencies.empty()
                ? std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(dim))
                : model_.frequencies[i];
        const double angle = static_cast<double>(position) * frequency;
        const double low = model_.rope_factor * head[i];
        const double high = model_.rope_factor * head[i + dim / 2];
        x[begin + i] = low * std::cos(angle) - high * std::sin(angle);
        x[begin + i + dim / 2] = high * std::cos(angle) + low * std::sin(angle);
      }
    }
  }

  void AddAttention(const std::string& block, int64_t window, std::vector<Row>& x) const {
    std::vector<Row> q, k, v;
    for (size_t t = 0; t < x.size(); ++t) {
      const Row h = Norm(block + "input_layernorm.weight", x[t]);
      q.push_back(Linear(block + "self_attn.q_proj", h, model_.q_dim()));
      k.push_back(Linear(block + "self_attn.k_proj", h, model_.kv_dim()));
      v.push_back(Linear(block + "self_attn.v_proj", h, model_.kv_dim()));
      const auto position = static_cast<int64_t>(t);
      PrepareHeads(block + "self_attn.q_norm.weight", position, window > 0, q.back());
      PrepareHeads(block + "self_attn.k_norm.weight", position, window > 0, k.back());
    }
    for (size_t t = 0; t < x.size(); ++t) {
      Row out;
      for (int64_t head = 0; head < model_.heads; ++head) {
        const size_t first =
            window == 0
                ? 0
                : static_cast<size_t>(std::max<int64_t>(0, static_cast<int64_t>(t) - window + 1));
        const Row part = AttendHead(head, q[t], k, v, first, t);
        out.insert(out.end(), part.begin(), part.end());
      }
      Row y = Linear(block + "self_attn.o_proj", out, model_.hidden);
      if (model_.is_gemma) y = Norm(block + "post_attention_layernorm.weight", y);
      for (size_t i = 0; i < y.size(); ++i) x[t][i] += y[i];
    }
  }

  // RoPE of the values of one head from `begin` on.
  void RotatePart(int64_t position, size_t begin, Row& x) const {
    const auto dim = static_cast<size_t>(model_.rope_dim);
    for (size_t i = 0; i < dim / 2; ++i) {
      double& low = x[begin + (model_.rope_in_pairs ? 2 * i : i)];
      double& high = x[begin + (model_.rope_in_pairs ? 2 * i + 1 : i + dim / 2)];
      const double angle = static_cast<double>(position) *
                           std::pow(1e4, -2.0 * static_cast<double>(i) / static_cast<double>(dim));
      const double before = low;
      low = low * std::cos(angle) - high * std::sin(angle);
      high = high * std::cos(angle) + before * std::sin(angle);
    }
  }

  // Keys and values of every head and token are written out. The norms of latents have eps 1e-6.
  void AddLatentAttention(const std::string& block, std::vector<Row>& x) const {
    const std::string attention = block + "self_attn.";
    const auto dn = static_cast<size_t>(model_.nope_dim);
    const auto dr = static_cast<size_t>(model_.rope_dim);
    const auto dv = static_cast<size_t>(model_.value_dim);
    const auto latent = model_.latent;
    std::vector<Row> q, up, rope_keys;
    for (size_t t = 0; t < x.size(); ++t) {
      const auto position = static_cast<int64_t>(t);
      const Row h = Norm(block + "input_layernorm.weight", x[t]);
      if (model_.query_rank > 0) {
        const Row low = Norm(attention + "q_a_layernorm.weight",
                             Linear(attention + "q_a_proj", h, model_.query_rank), 1e-6);
        q.push_back(Linear(attention + "q_b_proj", low, model_.query_dim()));
      } else {
        q.push_back(Linear(attention + "q_proj", h, model_.query_dim()));
      }
      for (size_t begin = dn; begin < q[t].size(); begin += dn + dr) {
        RotatePart(position, begin, q[t]);
      }
      Row kv = Linear(attention + "kv_a_proj_with_mqa", h, latent + model_.rope_dim);
      RotatePart(position, static_cast<size_t>(latent), kv);
      rope_keys.emplace_back(kv.begin() + latent, kv.end());
      kv.resize(static_cast<size_t>(latent));
      up.push_back(Linear(attention + "kv_b_proj",
                          Norm(attention + "kv_a_layernorm.weight", kv, 1e-6),
                          model_.heads * (model_.nope_dim + model_.value_dim)));
    }
    for (size_t t = 0; t < x.size(); ++t) {
      Row out;
      for (size_t head = 0; head < static_cast<size_t>(model_.heads); ++head) {
        Row sum(dv);
        double total = 0.0;
        for (size_t m = 0; m <= t; ++m) {
          double score = 0.0;
          for (size_t i = 0; i < dn; ++i) {
            score += q[t][head * (dn + dr) + i] * up[m][head * (dn + dv) + i];
          }
          for (size_t i = 0; i < dr; ++i) {
            score += q[t][head * (dn + dr) + dn + i] * rope_keys[m][i];
          }
          const double weight = std::exp(score / std::sqrt(static_cast<double>(dn + dr)));
          total += weight;
          for (size_t i = 0; i < dv; ++i) sum[i] += weight * up[m][head * (dn + dv) + dn + i];
        }
        for (const double value : sum) out.push_back(value / total);
      }
      const Row y = Linear(attention + "o_proj", out, model_.hidden);
      for (size_t i = 0; i < y.size(); ++i) x[t][i] += y[i];
    }
  }

  Row AttendHead(int64_t head, const Row& q, const std::vector<Row>& k, const std::vector<Row>& v,
                 size_t first, size_t last) const {
    const auto dim = static_cast<size_t>(model_.head_dim);
    const size_t q_begin = static_cast<size_t>(head) * dim;
    const size_t kv_begin = static_cast<size_t>(head / (model_.heads / model_.kv_heads)) * dim;
    Row out(dim);
    double sum = 0.0;
    for (size_t m = first; m <= last; ++m) {
      double score = 0.0;
      for (size_t i = 0; i < dim; ++i) score += q[q_begin + i] * k[m][kv_begin + i];
      const double weight = std::exp(
          score / std::sqrt(model_.is_gemma ? TinyModel::kQueryScalar : static_cast<double>(dim)));
      sum += weight;
      for (size_t i = 0; i < dim; ++i) out[i] += weight * v[m][kv_begin + i];
    }
    for (double& value : out) value /= sum;
    return out;
  }

  void AddMlp(const std::string& block, Row& x) const {
    const Row h = Norm(block + (model_.is_gemma ? "pre_feedforward_layernorm.weight"
                                                : "post_attention_layernorm.weight"),
                       x);
    if (weights_.contains(block + model_.router() + ".weight")) {
      AddExperts(block, h, x);
      return;
    }
    Row y = GatedMlp(block + "mlp.gate_proj", block + "mlp.up_proj", block + "mlp.down_proj", h,
                     model_.inner);
    if (model_.is_gemma) y = Norm(block + "post_feedforward_layernorm.weight", y);
    for (size_t i = 0; i < y.size(); ++i) x[i] += y[i];
  }

  Row GatedMlp(const std::string& gate_name, const std::string& up_name,
               const std::string& down_name, const Row& h, int64_t inner) const {
    Row gate = Linear(gate_name, h, inner);
    const Row up = Linear(up_name, h, inner);
    for (size_t i = 0; i < gate.size(); ++i) gate[i] = up[i] * Activate(gate[i]);
    return Linear(down_name, gate, model_.hidden);
  }

  void AddExperts(const std::string& block, const Row& h, Row& x) const {
    const Row logits = Linear(block + model_.router(), h, model_.experts);
    std::vector<int64_t> order;
    for (int64_t i = 0; i < model_.experts; ++i) order.push_back(i);
    const auto share = [&](int64_t i) { return std::exp(logits[static_cast<size_t>(i)]); };
    std::sort(order.begin(), order.end(),
              [&](int64_t a, int64_t b) { return share(a) > share(b); });
    double sum = 0.0;
    for (int64_t i = 0; i < model_.experts; ++i) {
      const bool counts = i < model_.chosen || !(model_.normalizes || model_.is_mixtral());
      if (counts) sum += share(order[static_cast<size_t>(i)]);
    }
    for (int64_t i = 0; i < model_.chosen; ++i) {
      const int64_t e = order[static_cast<size_t>(i)];
      const Row y = GatedMlp(block + model_.expert(e, "gate"), block + model_.expert(e, "up"),
                             block + model_.expert(e, "down"), h, model_.expert_size());
      for (size_t j = 0; j < y.size(); ++j) x[j] += share(e) / sum * y[j];
    }
    if (model_.shared_experts == 0) return;
    const Row y = GatedMlp(
        block + "mlp.shared_experts.gate_proj", block + "mlp.shared_experts.up_proj",
        block + "mlp.shared_experts.down_proj", h, model_.shared_experts * model_.expert_size());
    for (size_t j = 0; j < y.size(); ++j) x[j] += y[j];
  }

  double Activate(double z) const {
    if (!model_.is_gemma) return z / (1.0 + std::exp(-z));
    return 0.5 * z *
           (1.0 + std::tanh(std::sqrt(2.0 / std::numbers::pi) * (z + 0.044715 * z * z * z)));
  }

  const TinyModel& model_;
  const TinyWeights& weights_;
};

// Ids that a seed decides.
inline std::vector<int32_t> RandomTokens(int64_t vocab, int64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) {
    tokens.push_back(static_cast<int32_t>(random.Below(static_cast<uint64_t>(vocab))));
  }
  return tokens;
}

}  // namespace pmkvq::testing_support
