#include "pmkvq/model/model_size.h"

#include <algorithm>

#include "pmkvq/model/model_impl.h"

namespace pmkvq {

KvGeometry KvGeometryOf(const ModelConfig& config) {
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
    if (weight.role == WeightRole::kMatrix) count += NumElements(weight.shape);
  }
  return count;
}

int64_t WeightBytesOf(const ModelConfig& config, WeightFormat stored, WeightMode mode) {
  const auto matrix_bytes = [](const Shape& shape, WeightFormat format) {
    return shape[0] * RowBytes(format, shape[1]);
  };
  int64_t bytes = 0;
  for (const WeightDeclaration& weight : DeclaredWeights(config)) {
    if (weight.role != WeightRole::kMatrix) {
      bytes += NumElements(weight.shape) * static_cast<int64_t>(sizeof(float));
      continue;
    }
    const bool is_embedding = weight.name == "embedding";
    const bool is_quantized = mode == WeightMode::kQ8 && !is_embedding;
    bytes += matrix_bytes(weight.shape, is_quantized ? WeightFormat::kQ8 : stored);
    if (mode == WeightMode::kQ8 && is_embedding && config.tie_word_embeddings) {
      bytes += matrix_bytes(weight.shape, WeightFormat::kQ8);
    }
  }
  return bytes;
}

int64_t WeightBytesOf(const Checkpoint& checkpoint, WeightMode mode) {
  int64_t bytes = 0;
  for (const WeightDeclaration& weight : DeclaredWeights(checkpoint.config())) {
    if (weight.role != WeightRole::kMatrix) {
      bytes += NumElements(weight.shape) * static_cast<int64_t>(sizeof(float));
      continue;
    }
    const StoredWeight& stored = checkpoint.weights().Get(weight.name, weight.shape);
    const WeightFormat format = *stored.format;
    const bool is_plain = LayoutOf(format).block_values == 1;
    const bool is_embedding = weight.name == "embedding";
    const bool becomes_q8 = mode == WeightMode::kQ8 && is_plain;
    const auto rows_as = [&](WeightFormat kept) {
      return weight.shape[0] * RowBytes(kept, weight.shape[1]);
    };
    bytes += rows_as(becomes_q8 && !is_embedding ? WeightFormat::kQ8 : format);
    if (becomes_q8 && is_embedding && checkpoint.config().tie_word_embeddings) {
      bytes += rows_as(WeightFormat::kQ8);
    }
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
