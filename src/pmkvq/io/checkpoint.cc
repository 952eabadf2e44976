#include "pmkvq/io/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/hash.h"
#include "pmkvq/io/json_text.h"

namespace pmkvq {
namespace {

constexpr const char* kWeightsName = "model.safetensors";
constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr size_t kIdentityBytesPerTensor = 64 * 1024;

// The files of a sharded checkpoint, in order of name, each holding what the index says.
std::vector<SafetensorsFile> OpenShards(const std::string& folder, const std::string& index_path) {
  const JsonValue weight_map = JsonValue::ParseFile(index_path).At("weight_map");
  std::map<std::string, std::vector<std::string>> tensors_of_shard;
  for (const std::string& tensor : weight_map.Keys()) {
    const JsonValue value = weight_map.At(tensor);
    const std::string shard = value.AsString();
    if (shard.empty() || shard.find('/') != std::string::npos || shard.front() == '.') {
      value.Fail("the name of a file in the same folder");
    }
    tensors_of_shard[shard].push_back(tensor);
  }
  if (tensors_of_shard.empty()) weight_map.Fail("at least one tensor");

  std::vector<SafetensorsFile> files;
  for (const auto& [shard, tensors] : tensors_of_shard) {
    const std::string path = JoinPath(folder, shard);
    if (!FileExists(path)) {
      throw InvalidInput(index_path,
                         fmt::format("weight_map: shard '{}' is missing in {}, expected "
                                     "every shard that the index names",
                                     shard, folder));
    }
    files.push_back(SafetensorsFile::Open(path));
    for (const std::string& tensor : tensors) {
      if (files.back().Find(tensor) == nullptr) {
        throw InvalidInput(path, fmt::format("tensor '{}': found nothing, expected it here because "
                                             "{} says so",
                                             tensor, kIndexName));
      }
    }
  }
  return files;
}

void CheckDistinct(const std::vector<SafetensorsFile>& files) {
  std::map<std::string, std::string> path_of_tensor;
  for (const SafetensorsFile& file : files) {
    for (const auto& [name, view] : file.tensors()) {
      const auto [it, inserted] = path_of_tensor.emplace(name, file.path());
      if (!inserted) {
        throw InvalidInput(file.path(), fmt::format("tensor '{}': found here and in {}, expected "
                                                    "it once",
                                                    name, it->second));
      }
    }
  }
}

// Everything that decides what the weights compute, in a fixed order and spelling. Durable: plans
// hold its hash, so a change here makes every plan one of another model.
std::string ArchitectureText(const ModelConfig& config) {
  const auto number = [](double value) {
    std::string text;
    internal::AppendJsonNumber(text, value);
    return text;
  };
  const RopeScaling& rope = config.rope_scaling;
  // attention_factor comes from log(), whose last bit is not the same everywhere: 9 digits of it.
  std::string text = fmt::format(
      "{} vocab={} hidden={} intermediate={} layers={} heads={} kv_heads={} head_dim={} eps={} "
      "theta={} tied={} qkv_bias={} o_bias={} qk_norm={}",
      config.architecture, config.vocab_size, config.hidden_size, config.intermediate_size,
      config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim,
      number(config.rms_norm_eps), number(config.rope_theta), config.tie_word_embeddings,
      config.qkv_bias, config.o_bias, config.qk_norm);
  text += fmt::format(
      " rope={} factor={} low={} high={} original={} fast={} slow={} attention={:.9g} "
      "truncate={}\n",
      static_cast<int>(rope.type), number(rope.factor), number(rope.low_freq_factor),
      number(rope.high_freq_factor), rope.original_max_position_embeddings, number(rope.beta_fast),
      number(rope.beta_slow), rope.attention_factor, rope.truncate);
  return text;
}

}  // namespace

Checkpoint Checkpoint::Open(const std::string& folder) {
  std::error_code error;
  if (!std::filesystem::is_directory(folder, error)) {
    throw IoError(folder,
                  "model folder: found no such folder, expected one with config.json and "
                  "*.safetensors");
  }
  Checkpoint checkpoint;
  checkpoint.folder_ = folder;
  checkpoint.config_ = LoadModelConfig(folder);
  const std::string weights = JoinPath(folder, kWeightsName);
  const std::string index = JoinPath(folder, kIndexName);
  if (FileExists(weights)) {
    checkpoint.files_.push_back(SafetensorsFile::Open(weights));
  } else if (FileExists(index)) {
    checkpoint.files_ = OpenShards(folder, index);
  } else {
    throw InvalidInput(
        folder, fmt::format("weights: found none, expected {} or {}", kWeightsName, kIndexName));
  }
  CheckDistinct(checkpoint.files_);
  return checkpoint;
}

Checkpoint Checkpoint::FromMemory(const std::string& name, const ModelConfig& config,
                                  std::map<std::string, Tensor> tensors) {
  Checkpoint checkpoint;
  checkpoint.folder_ = name;
  checkpoint.config_ = config;
  checkpoint.files_.push_back(SafetensorsFile::FromMemory(name, std::move(tensors)));
  return checkpoint;
}

const TensorView& Checkpoint::Get(const std::string& name, const Shape& shape) const {
  for (const SafetensorsFile& file : files_) {
    const TensorView* view = file.Find(name);
    if (view == nullptr) continue;
    if (!IsFloat16Or32(view->dtype) || view->shape != shape) {
      throw InvalidInput(file.path(),
                         fmt::format("tensor '{}': found {} {}, expected F32, F16 or BF16 {}", name,
                                     NameOf(view->dtype), ToString(view->shape), ToString(shape)));
    }
    return *view;
  }
  throw InvalidInput(folder_,
                     fmt::format("tensor '{}': found nothing, expected F32, F16 or BF16 {}", name,
                                 ToString(shape)));
}

bool Checkpoint::Has(const std::string& name) const {
  return std::any_of(files_.begin(), files_.end(),
                     [&](const SafetensorsFile& file) { return file.Find(name) != nullptr; });
}

void Checkpoint::DropPages(const TensorView& tensor) const {
  for (const SafetensorsFile& file : files_) file.DropPages(tensor);
}

std::string Checkpoint::Identity() const {
  std::map<std::string, const TensorView*> tensors;
  for (const SafetensorsFile& file : files_) {
    for (const auto& [name, view] : file.tensors()) tensors.emplace(name, &view);
  }
  Hash128 hash;
  hash.Update(ArchitectureText(config_));
  for (const auto& [name, view] : tensors) {
    hash.Update(fmt::format("{} {} {}\n", name, NameOf(view->dtype), ToString(view->shape)));
    hash.Update(view->data, std::min(view->num_bytes(), kIdentityBytesPerTensor));
  }
  return hash.HexDigest();
}

std::string HashFile(const std::string& path) {
  const MappedFile file = MappedFile::Open(path);
  Hash128 hash;
  hash.Update(file.data(), file.size());
  return hash.HexDigest();
}

}  // namespace pmkvq
