#include "pmkvq/io/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <set>
#include <string_view>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/hash.h"
#include "pmkvq/io/json_text.h"
#include "pmkvq/io/limits.h"

namespace pmkvq {
namespace {

constexpr const char* kWeightsName = "model.safetensors";
constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr size_t kIdentityBytesPerTensor = 64 * 1024;

bool Holds(const SafetensorsFile& file, const std::string& name) {
  return file.Find(name) != nullptr || file.foreign_tensors().contains(name);
}

// Names of the shards, sorted. Throws InvalidInput for one that is not a plain file name.
std::set<std::string, std::less<>> ShardNames(const JsonValue& weight_map) {
  std::set<std::string, std::less<>> shards;
  if (weight_map.size() > limits::kTensors) {
    weight_map.Fail(fmt::format("at most {} tensors", limits::kTensors));
  }
  weight_map.ForEachMember([&](std::string_view, const JsonValue& value) {
    const std::string_view shard = value.AsStringView();
    if (shard.empty() || shard.find('/') != std::string_view::npos || shard.front() == '.') {
      value.Fail("the name of a file in the same folder");
    }
    if (shards.find(shard) == shards.end()) shards.emplace(shard);
    if (shards.size() > limits::kShards)
      value.Fail(fmt::format("at most {} shards", limits::kShards));
  });
  if (shards.empty()) weight_map.Fail("at least one tensor");
  return shards;
}

// The files of a sharded checkpoint, in order of name, each holding what the index says.
std::vector<SafetensorsFile> OpenShards(const std::string& folder, const std::string& index_path) {
  const JsonValue weight_map = JsonValue::ParseFile(index_path).At("weight_map");
  const std::set<std::string, std::less<>> shards = ShardNames(weight_map);
  for (const std::string& shard : shards) {
    if (FileExists(JoinPath(folder, shard))) continue;
    throw InvalidInput(index_path, fmt::format("weight_map: shard '{}' is missing in {}, expected "
                                               "every shard that the index names",
                                               shard, folder));
  }
  std::vector<SafetensorsFile> files;
  std::map<std::string_view, const SafetensorsFile*> file_of_shard;
  files.reserve(shards.size());
  for (const std::string& shard : shards) {
    files.push_back(SafetensorsFile::Open(JoinPath(folder, shard)));
    file_of_shard[shard] = &files.back();
  }
  weight_map.ForEachMember([&](std::string_view tensor, const JsonValue& value) {
    const SafetensorsFile& file = *file_of_shard.at(value.AsStringView());
    if (Holds(file, std::string(tensor))) return;
    throw InvalidInput(file.path(), fmt::format("tensor '{}': found nothing, expected it here "
                                                "because {} says so",
                                                tensor, kIndexName));
  });
  return files;
}

void CheckDistinct(const std::vector<SafetensorsFile>& files) {
  for (size_t i = 0; i < files.size(); ++i) {
    for (size_t before = 0; before < i; ++before) {
      const auto check = [&](const std::string& name) {
        if (!Holds(files[before], name)) return;
        throw InvalidInput(files[i].path(), fmt::format("tensor '{}': found here and in {}, "
                                                        "expected it once",
                                                        name, files[before].path()));
      };
      for (const auto& [name, view] : files[i].tensors()) check(name);
      for (const auto& [name, tensor] : files[i].foreign_tensors()) check(name);
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
  if (std::filesystem::is_regular_file(folder, error)) {
    throw Unsupported(folder,
                      fmt::format("model folder: found a file, expected a folder with "
                                  "config.json and *.safetensors{}",
                                  folder.ends_with(".gguf") ? " (GGUF is not supported)" : ""));
  }
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
    file.RefuseForeign(name);
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
                     [&](const SafetensorsFile& file) { return Holds(file, name); });
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
