// The memory of a model and of its Forward, known from the config alone.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pmkvq/io/model_config.h"
#include "pmkvq/kv/kv_geometry.h"
#include "pmkvq/model/model.h"
#include "pmkvq/tensor/weight_format.h"

namespace pmkvq {

// What the blocks of such a model keep of every token.
KvGeometry KvGeometryOf(const ModelConfig& config);

// Weights of the model; norms and biases, which are kept as floats, are not among them.
int64_t NumMatrixWeights(const ModelConfig& config);

// Those of them that one token is computed with: all but the experts that it did not choose.
int64_t NumActiveWeights(const ModelConfig& config);

// Model::weight_bytes of a model whose files have all matrices in the format `stored`.
int64_t WeightBytesOf(const ModelConfig& config, WeightFormat stored, WeightMode mode);
// Model::weight_bytes of the checkpoint, whose files may have matrices of several types. Throws
// InvalidInput for a weight that is missing or of another shape.
int64_t WeightBytesOf(const Checkpoint& checkpoint, WeightMode mode);

// ForwardWorkspace::scratch and logits after Forwards of `num_sequences` chunks of one token each,
// and of one chunk of `chunk_tokens`, with logits of the last tokens. 0 leaves either out.
// For stores without extra needs, as packed caches are.
int64_t WorkspaceBytesOf(const ModelConfig& config, int64_t num_sequences, int64_t chunk_tokens);

}  // namespace pmkvq
