#include "pmkvq/io/checkpoint.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/gguf/gguf_config.h"
#include "pmkvq/io/hash.h"
#include "pmkvq/io/json_text.h"
#include "pmkvq/io/weights/gguf_source.h"
#include "pmkvq/io/weights/safetensors_source.h"

namespace pmkvq {
namespace {

std::string NumberText(double value) {
  std::string text;
  internal::AppendJsonNumber(text, value);
  return text;
}

// attention_factor comes from log(), whose last bit is not the same everywhere: 9 digits of it.
std::string RopeText(const RopeScaling& rope) {
  const auto number = NumberText;
  return fmt::format(
      " rope={} factor={} low={} high={} original={} fast={} slow={} attention={:.9g} "
      "truncate={}\n",
      static_cast<int>(rope.type), number(rope.factor), number(rope.low_freq_factor),
      number(rope.high_freq_factor), rope.original_max_position_embeddings, number(rope.beta_fast),
      number(rope.beta_slow), rope.attention_factor, rope.truncate);
}

// All config fields that change the result of the model, in a fixed order and spelling. Durable:
// plans hold its hash, so a change here makes every plan one of another model.
std::string ArchitectureText(const ModelConfig& config) {
  const auto number = NumberText;
  std::string text = fmt::format(
      "{} vocab={} hidden={} intermediate={} layers={} heads={} kv_heads={} head_dim={} eps={} "
      "theta={} tied={} qkv_bias={} o_bias={} qk_norm={}",
      config.architecture, config.vocab_size, config.hidden_size, config.intermediate_size,
      config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim,
      number(config.rms_norm_eps), number(config.rope_theta), config.tie_word_embeddings,
      config.qkv_bias, config.o_bias, config.qk_norm);
  text += RopeText(config.rope_scaling);
  if (!config.sliding_windows.empty()) {
    text += fmt::format("windows={}\n", fmt::join(config.sliding_windows, ","));
  }
  if (config.local_rope) {
    const LocalRope& local = *config.local_rope;
    const std::vector<int> blocks(local.blocks.begin(), local.blocks.end());
    text += fmt::format("local={} theta={}", fmt::join(blocks, ","), number(local.theta));
    text += RopeText(local.scaling);
  }
  if (config.post_norms) {
    text += fmt::format("post_norms offset={} embedding={:.9g} query={:.9g} activation={}\n",
                        number(config.norm_offset), config.embedding_factor, config.query_factor,
                        static_cast<int>(config.activation));
  }
  if (config.moe) {
    const MoeConfig& moe = *config.moe;
    const std::vector<int> blocks(moe.blocks.begin(), moe.blocks.end());
    text += fmt::format(
        "experts={} chosen={} size={} normalize={} blocks={} score={} factor={} bias={} "
        "groups={}/{} top={} shared={}\n",
        moe.num_experts, moe.num_chosen, moe.expert_size, moe.normalize, fmt::join(blocks, ","),
        static_cast<int>(moe.score), number(moe.weight_factor), moe.choice_bias,
        moe.num_chosen_groups, moe.num_groups, moe.group_top, moe.shared_size);
  }
  if (config.mla) {
    const MlaConfig& mla = *config.mla;
    text += fmt::format("latent={} query={} nope={} rope={} value={} pairs={} scores={:.9g}\n",
                        mla.latent, mla.query_rank, mla.nope_dim, mla.rope_dim, mla.value_dim,
                        mla.rope_in_pairs, mla.score_factor);
  }
  return text;
}

}  // namespace

Checkpoint Checkpoint::Open(const std::string& path) {
  Checkpoint checkpoint;
  checkpoint.folder_ = path;
  const std::string gguf = FindGgufFile(path);
  if (!gguf.empty()) {
    GgufSet files = GgufSet::Open(gguf);
    checkpoint.config_ = ParseGgufConfig(files, &checkpoint.warnings_);
    const ModelConfig& config = checkpoint.config_;
    checkpoint.weights_ =
        MakeGgufSource(std::move(files), config.head_dim, config.moe ? config.moe->num_experts : 0);
    return checkpoint;
  }
  std::error_code error;
  if (std::filesystem::is_regular_file(path, error)) {
    throw Unsupported(path,
                      "model: found a file of another kind, expected a GGUF file, or a folder with "
                      "config.json and *.safetensors");
  }
  if (!std::filesystem::is_directory(path, error)) {
    throw IoError(path,
                  "model: found no such folder or file, expected a folder with config.json and "
                  "*.safetensors, or a GGUF file");
  }
  checkpoint.config_ = LoadModelConfig(path);
  const ModelConfig& config = checkpoint.config_;
  checkpoint.weights_ = OpenSafetensorsSource(
      path,
      {config.q_dim(), config.kv_dim(), config.intermediate_size,
       config.moe ? config.moe->num_experts : 0, config.moe ? config.moe->expert_size : 0},
      {config.fp8, config.block_format}, {config.num_layers, config.num_skipped_layers});
  return checkpoint;
}

Checkpoint Checkpoint::FromMemory(const std::string& name, const ModelConfig& config,
                                  std::map<std::string, Tensor> tensors) {
  Checkpoint checkpoint;
  checkpoint.folder_ = name;
  checkpoint.config_ = config;
  checkpoint.weights_ = MakeSafetensorsSource(name, std::move(tensors));
  return checkpoint;
}

std::string Checkpoint::Identity() const { return weights_->Identity(ArchitectureText(config_)); }

std::string HashFile(const std::string& path) {
  const MappedFile file = MappedFile::Open(path);
  Hash128 hash;
  hash.Update(file.data(), file.size());
  return hash.HexDigest();
}

}  // namespace pmkvq
