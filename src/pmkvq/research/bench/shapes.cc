#include "pmkvq/research/bench/shapes.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <utility>

#include "pmkvq/base/available_memory.h"
#include "pmkvq/base/byte_size.h"
#include "pmkvq/base/error.h"
#include "pmkvq/io/weights/hugging_face_names.h"
#include "pmkvq/model/model_size.h"
#include "pmkvq/model/weight_list.h"
#include "pmkvq/tensor/weight_format.h"

namespace pmkvq {
namespace {

struct NamedSizes {
  const char* name;
  const char* architecture;
  int64_t layers, heads, kv_heads, hidden, intermediate;
};

// All with heads of 128 values.
constexpr NamedSizes kShapes[] = {
    {"qwen2-7b", "Qwen2ForCausalLM", 28, 28, 4, 3584, 18944},
    {"llama3-8b", "LlamaForCausalLM", 32, 32, 8, 4096, 14336},
    {"llama2-7b", "LlamaForCausalLM", 32, 32, 32, 4096, 11008},
    {"qwen2-1.5b", "Qwen2ForCausalLM", 28, 12, 2, 1536, 8960},
    {"longcot", "Qwen2ForCausalLM", 12, 2, 1, 256, 768},
};

struct LatentSizes {
  const char* name;
  int64_t heads, latent, rope;
};

constexpr LatentSizes kLatentShapes[] = {
    {"deepseek-v2-lite", 16, 512, 64},
    {"minicpm3", 40, 256, 32},
    {"deepseek-v2", 128, 512, 64},
};

}  // namespace

std::vector<std::string> LatentShapeNames() {
  std::vector<std::string> names;
  for (const LatentSizes& shape : kLatentShapes) names.emplace_back(shape.name);
  return names;
}

std::optional<KvBlockGeometry> NamedLatentShape(std::string_view name) {
  for (const LatentSizes& shape : kLatentShapes) {
    if (name == shape.name) return LatentBlockOf(shape.heads, shape.latent, shape.rope);
  }
  return std::nullopt;
}

std::vector<std::string> ShapeNames() {
  std::vector<std::string> names;
  for (const NamedSizes& shape : kShapes) names.emplace_back(shape.name);
  return names;
}

ModelConfig NamedShape(std::string_view name, int64_t layers) {
  for (const NamedSizes& shape : kShapes) {
    if (name != shape.name) continue;
    ModelConfig config;
    config.architecture = shape.architecture;
    config.qkv_bias = config.architecture == "Qwen2ForCausalLM";
    config.model_type = config.qkv_bias ? "qwen2" : "llama";
    config.vocab_size = kBenchVocabulary;
    config.hidden_size = shape.hidden;
    config.intermediate_size = shape.intermediate;
    config.num_layers = layers == 0 ? shape.layers : layers;
    config.num_heads = shape.heads;
    config.num_kv_heads = shape.kv_heads;
    config.head_dim = 128;
    config.max_position_embeddings = 131072;
    return config;
  }
  throw InvalidInput("--shape", fmt::format("found '{}', expected one of {}", name,
                                            fmt::join(ShapeNames(), ", ")));
}

std::vector<std::string> ExpertShapeNames() { return {"qwen3-30b-a3b", "deepseek-v2-lite"}; }

std::optional<ModelConfig> NamedExpertShape(std::string_view name, int64_t layers) {
  ModelConfig config;
  config.vocab_size = kBenchVocabulary;
  config.hidden_size = 2048;
  config.max_position_embeddings = 131072;
  MoeConfig moe;
  if (name == "qwen3-30b-a3b") {
    config.architecture = "Qwen3MoeForCausalLM";
    config.model_type = "qwen3_moe";
    config.intermediate_size = 6144;
    config.num_layers = layers == 0 ? 48 : layers;
    config.num_heads = 32;
    config.num_kv_heads = 4;
    config.head_dim = 128;
    config.qk_norm = true;
    moe.num_experts = 128;
    moe.num_chosen = 8;
    moe.expert_size = 768;
    moe.normalize = true;
    moe.blocks.assign(static_cast<size_t>(config.num_layers), true);
  } else if (name == "deepseek-v2-lite") {
    config.architecture = "DeepseekV2ForCausalLM";
    config.model_type = "deepseek_v2";
    config.intermediate_size = 10944;
    config.num_layers = layers == 0 ? 27 : layers;
    config.num_heads = 16;
    config.num_kv_heads = 1;
    config.mla = MlaConfig{.latent = 512, .nope_dim = 128, .rope_dim = 64, .value_dim = 128};
    config.head_dim = config.mla->nope_dim + config.mla->rope_dim;
    moe.num_experts = 64;
    moe.num_chosen = 6;
    moe.expert_size = 1408;
    moe.shared_size = 2 * moe.expert_size;
    moe.blocks.assign(static_cast<size_t>(config.num_layers), true);
    moe.blocks[0] = false;
  } else {
    return std::nullopt;
  }
  config.moe = std::move(moe);
  return config;
}

double WeightsOfStep(const ModelConfig& config, int64_t rows) {
  const auto embedding = static_cast<double>(config.vocab_size * config.hidden_size);
  const auto all = static_cast<double>(NumMatrixWeights(config));
  const double dense = config.tie_word_embeddings ? all : all - embedding;
  if (!config.moe) return dense;
  // A token leaves out n - k experts in each block that has some.
  const auto left_out = all - static_cast<double>(NumActiveWeights(config));
  const auto experts = static_cast<double>(config.moe->num_experts);
  const auto chosen = static_cast<double>(config.moe->num_chosen);
  const double of_experts = left_out * experts / (experts - chosen);
  return dense - of_experts * std::pow(1.0 - chosen / experts, static_cast<double>(rows));
}

std::vector<BlockMatrix> BlockMatrices(const ModelConfig& config) {
  std::vector<BlockMatrix> matrices;
  for (const WeightDeclaration& declared : DeclaredWeights(config)) {
    if (declared.role != WeightRole::kMatrix || !declared.name.starts_with("blocks.0.")) continue;
    // "model.layers.0.self_attn.q_proj.weight"
    std::string name = HuggingFaceName(declared.name);
    name.resize(name.rfind('.'));
    matrices.push_back({name.substr(name.rfind('.') + 1), declared.shape[0], declared.shape[1]});
  }
  return matrices;
}

int64_t BlockParameters(const ModelConfig& config) {
  int64_t count = 0;
  for (const BlockMatrix& matrix : BlockMatrices(config)) count += matrix.rows * matrix.cols;
  return count;
}

int64_t SyntheticModelBytes(const ModelConfig& config) { return 2 * NumMatrixWeights(config); }

double BytesPerWeight(WeightMode mode) {
  const WeightLayout& layout = LayoutOf(FormatInMode(mode, WeightFormat::kBF16));
  return static_cast<double>(layout.block_bytes) / static_cast<double>(layout.block_values);
}

void CheckMemory(int64_t bytes, const std::string& remedy) {
  const int64_t available = AvailableMemory();
  if (available == 0 || bytes <= available) return;
  throw InvalidInput(
      "bench", fmt::format("needs {} of memory: found {} available; {}", FormatByteSize(bytes),
                           FormatByteSize(available), remedy));
}

}  // namespace pmkvq
