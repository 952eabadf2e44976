// Weights in *.safetensors files under the names of Hugging Face checkpoints.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "pmkvq/io/quantization_config.h"
#include "pmkvq/io/weights/weight_source.h"

namespace pmkvq {

// model.safetensors of the folder, or the shards that its model.safetensors.index.json lists.
// Files are mapped and weights are used as stored. Throws IoError / InvalidInput: no weights, a
// shard missing, a tensor that the index promises and the shard lacks, the same tensor twice, also
// as a part of another one.
//
// Identity: 128-bit xxHash over the architecture and, in order of name, each tensor's name, dtype,
// shape and first 64 KiB. Tensors of types that cannot be read do not count.
// Matrices that a checkpoint holds as one (FusedPartsOfHuggingFace, and those of all experts) are
// listed part by part, where `rows` says how many rows each has.
//
// With `fp8` E4M3 matrices are weights, too (fp8_weights.h; throws as AttachFp8Scales); their codes
// follow the other tensors in the identity. With `blocks` tensors of bytes in its shape are, too.
// Rows of matrices that may be parts of fused ones.
struct FusedRows {
  int64_t q = 0;      // H * D
  int64_t kv = 0;     // Hkv * D
  int64_t inner = 0;  // F
  int64_t num_experts = 0;
  int64_t expert_inner = 0;  // F of an expert
};
// What config.json says of quantised tensors.
struct QuantizedTensors {
  std::optional<Fp8Format> fp8;
  std::optional<WeightFormat> blocks;
};
// Blocks that a model does not use: their tensors have no name, and count as those of no block.
struct SkippedBlocks {
  int64_t first = 0;
  int64_t count = 0;
};
std::unique_ptr<const WeightSource> OpenSafetensorsSource(const std::string& folder,
                                                          const FusedRows& rows = {},
                                                          const QuantizedTensors& quantized = {},
                                                          const SkippedBlocks& skipped = {});

// The same of tensors in memory; `name` stands for the folder.
std::unique_ptr<const WeightSource> MakeSafetensorsSource(const std::string& name,
                                                          std::map<std::string, Tensor> tensors);

}  // namespace pmkvq
