// A model: its config and the source of its weights.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "pmkvq/io/model_config.h"
#include "pmkvq/io/weights/weight_source.h"

namespace pmkvq {

// Move-only; weights stay valid while it lives.
class Checkpoint {
 public:
  // A Hugging Face folder (io/weights/safetensors_source.h), or what FindGgufFile takes for a GGUF
  // file (io/weights/gguf_source.h).
  // Throws IoError / InvalidInput / Unsupported: no such path, another file, and what the config
  // and the source of the kind throw.
  static Checkpoint Open(const std::string& path);

  // A model that exists in memory only: `name` stands for the folder, `config` is taken as valid.
  // Tensors have the names of Hugging Face (io/weights/hugging_face_names.h).
  static Checkpoint FromMemory(const std::string& name, const ModelConfig& config,
                               std::map<std::string, Tensor> tensors);

  // As it was opened: a folder, or a GGUF file.
  const std::string& folder() const { return folder_; }
  // Lines about things that a user should know of files that can be used.
  const std::vector<std::string>& warnings() const { return warnings_; }
  const ModelConfig& config() const { return config_; }
  const WeightSource& weights() const { return *weights_; }

  // Identifies the model in plans: WeightSource::Identity with the architecture's fields.
  std::string Identity() const;

 private:
  std::string folder_;
  std::vector<std::string> warnings_;
  ModelConfig config_;
  std::unique_ptr<const WeightSource> weights_;
};

// Hash of a whole file's bytes, 32 hex digits (plans name their tensor file's hash).
std::string HashFile(const std::string& path);

}  // namespace pmkvq
