#include "pmkvq/model/model_size.h"

#include <algorithm>

#include "pmkvq/model/model_impl.h"

namespace pmkvq {
namespace {

// With the copy of a tied embedding that is the head.
int64_t MatrixBytesOf(const WeightDeclaration& weight, WeightFormat stored, WeightMode mode,
                      bool is_tied) {
  const auto rows_as = [&](WeightFormat kept) {
    return weight.shape[0] * RowBytes(kept, weight.shape[1]);
  };
  if (weight.role == WeightRole::kRouter) return rows_as(stored);
  const WeightFormat made = FormatInMode(mode, stored);
  if (weight.name != "embedding") return rows_as(made);
  return rows_as(stored) + (is_tied && made != stored ? rows_as(made) : 0);
}

}  // namespace

KvGeometry KvGeometryOf(const ModelConfig& config) {
  if (config.mla) {
    KvGeometry latents;
    latents.blocks.assign(
        static_cast<size_t>(config.num_layers),
        LatentBlockOf(config.num_heads, config.mla->latent, config.mla->rope_dim));
    return latents;
  }
  KvGeometry geometry =
      UniformKvGeometry{config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim};
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    geometry.blocks[static_cast<size_t>(layer)].sliding_window = config.sliding_window(layer);
  }
  return geometry;
}

int64_t NumMatrixWeights(const ModelConfig& config) {
  int64_t count = 0;
  for (const WeightDeclaration& weight : DeclaredWeights(config)) {
    if (IsMatrix(weight.role)) count += NumElements(weight.shape);
  }
  return count;
}

int64_t NumActiveWeights(const ModelConfig& config) {
  int64_t of_experts = 0;
  for (const WeightDeclaration& weight : DeclaredWeights(config)) {
    if (weight.role == WeightRole::kExpert) of_experts += NumElements(weight.shape);
  }
  const int64_t all = NumMatrixWeights(config);
  if (!config.moe) return all;
  // Experts of a model are alike, so this is a whole number of them.
  return all - of_experts + of_experts / config.moe->num_experts * config.moe->num_chosen;
}

int64_t WeightBytesOf(const ModelConfig& config, WeightFormat stored, WeightMode mode) {
  int64_t bytes = 0;
  for (const WeightDeclaration& weight : DeclaredWeights(config)) {
    if (!IsMatrix(weight.role)) {
      bytes += NumElements(weight.shape) * static_cast<int64_t>(sizeof(float));
      continue;
    }
    bytes += MatrixBytesOf(weight, stored, mode, config.tie_word_embeddings);
  }
  return bytes;
}

int64_t WeightBytesOf(const Checkpoint& checkpoint, WeightMode mode) {
  int64_t bytes = 0;
  for (const WeightDeclaration& weight : DeclaredWeights(checkpoint.config())) {
    if (!IsMatrix(weight.role)) {
      bytes += NumElements(weight.shape) * static_cast<int64_t>(sizeof(float));
      continue;
    }
    const StoredWeight& stored = checkpoint.weights().Get(weight.name, weight.shape);
    bytes += MatrixBytesOf(weight, *stored.format, mode, checkpoint.config().tie_word_embeddings);
  }
  return bytes;
}

int64_t WorkspaceBytesOf(const ModelConfig& config, int64_t num_sequences, int64_t chunk_tokens) {
  const RopeTables ropes(config);
  const ModelParts parts(config, ropes);
  Scratch<float> scratch = Scratch<float>::CountOnly();
  const auto count = [&](int64_t num_rows, int64_t max_slice_rows) {
    ForwardRows rows;
    rows.num_rows = num_rows;
    rows.max_slice_rows = max_slice_rows;
    rows.scratch = &scratch;
    const Scratch<float>::Frame frame(scratch);
    TakeRowBuffers(config, rows);
    for (const auto& attention : parts.attentions) attention->CountScratch(rows);
    for (const auto& mlp : parts.mlps) mlp->CountScratch(rows);
  };
  if (num_sequences > 0) count(num_sequences, std::min(num_sequences, kDecodeRows));
  if (chunk_tokens > 0) count(chunk_tokens, chunk_tokens);
  const int64_t logit_rows = std::max<int64_t>(num_sequences, chunk_tokens > 0 ? 1 : 0);
  return static_cast<int64_t>(scratch.num_bytes()) +
         logit_rows * config.vocab_size * static_cast<int64_t>(sizeof(float));
}

}  // namespace pmkvq
