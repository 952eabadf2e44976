// Weights in *.safetensors files under the names of Hugging Face checkpoints.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "pmkvq/io/weights/weight_source.h"

namespace pmkvq {

// model.safetensors of the folder, or the shards that its model.safetensors.index.json lists.
// Files are mapped and weights are used as stored. Throws IoError / InvalidInput: no weights, a
// shard missing, a tensor that the index promises and the shard lacks, the same tensor twice.
//
// Identity: 128-bit xxHash over the architecture and, in order of name, each tensor's name, dtype,
// shape and first 64 KiB. Tensors of types that cannot be read do not count.
std::unique_ptr<const WeightSource> OpenSafetensorsSource(const std::string& folder);

// The same of tensors in memory; `name` stands for the folder.
std::unique_ptr<const WeightSource> MakeSafetensorsSource(const std::string& name,
                                                          std::map<std::string, Tensor> tensors);

}  // namespace pmkvq
