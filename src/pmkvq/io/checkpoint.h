// A Hugging Face model folder: config and mapped weights.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "pmkvq/io/model_config.h"
#include "pmkvq/io/safetensors.h"

namespace pmkvq {

// model.safetensors, or the shards that model.safetensors.index.json lists. Weights are mapped
// and used as stored. Move-only; views stay valid while it lives.
class Checkpoint {
 public:
  // Throws IoError / InvalidInput / Unsupported: no folder, no weights, a shard missing, a tensor
  // that the index promises and the shard lacks, the same tensor twice, a file instead of a folder.
  static Checkpoint Open(const std::string& folder);

  // A model that exists in memory only: `name` stands for the folder, `config` is taken as valid.
  // For synthetic models whose weights only have to be of the right shape and size.
  static Checkpoint FromMemory(const std::string& name, const ModelConfig& config,
                               std::map<std::string, Tensor> tensors);

  const std::string& folder() const { return folder_; }
  const ModelConfig& config() const { return config_; }
  const std::vector<SafetensorsFile>& files() const { return files_; }

  // The tensor of that name, which must have that shape and be F32, F16 or BF16.
  // Throws InvalidInput naming file, tensor, found and expected; Unsupported for a dtype that we do
  // not compute with.
  const TensorView& Get(const std::string& name, const Shape& shape) const;
  bool Has(const std::string& name) const;
  // SafetensorsFile::DropPages of the file that holds it.
  void DropPages(const TensorView& tensor) const;

  // 128-bit xxHash, as 32 hex digits, over the architecture fields and, in order of name, each
  // weight tensor's name, dtype, shape and first 64 KiB. Identifies the model in plans.
  std::string Identity() const;

 private:
  std::string folder_;
  ModelConfig config_;
  std::vector<SafetensorsFile> files_;
};

// Hash of a whole file's bytes, 32 hex digits (plans name their tensor file's hash).
std::string HashFile(const std::string& path);

}  // namespace pmkvq
