#include "pmkvq/io/weights/safetensors_source.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/hash.h"
#include "pmkvq/io/json.h"
#include "pmkvq/io/limits.h"
#include "pmkvq/io/safetensors.h"
#include "pmkvq/io/weights/expert_stacks.h"
#include "pmkvq/io/weights/fp8_weights.h"
#include "pmkvq/io/weights/hugging_face_names.h"

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

StoredWeight Describe(const SafetensorsFile& file, const std::string& stored_name,
                      HuggingFaceNaming naming) {
  StoredWeight weight;
  weight.name = CanonicalNameOfHuggingFace(stored_name, naming);
  weight.stored_name = stored_name;
  weight.file = file.path();
  return weight;
}

int64_t RowsOfPart(std::string_view part, const FusedRows& rows) {
  if (part.find(".experts.") != std::string_view::npos) return rows.expert_inner;
  if (part.ends_with("attn.q")) return rows.q;
  return part.ends_with("attn.k") || part.ends_with("attn.v") ? rows.kv : rows.inner;
}

// Puts the parts of fused matrices in their places: rows of one tensor lie behind each other.
std::vector<StoredWeight> SplitFused(std::vector<StoredWeight> tensors, const FusedRows& rows) {
  std::vector<StoredWeight> split;
  for (StoredWeight& tensor : tensors) {
    std::vector<std::string> parts = FusedPartsOfHuggingFace(tensor.stored_name);
    if (parts.empty() && !internal::IsExpertStack(tensor.name)) parts = PartsOfExpert(tensor.name);
    if (parts.empty() || rows.q == 0) {
      split.push_back(std::move(tensor));
      continue;
    }
    int64_t num_rows = 0;
    for (const std::string& part : parts) num_rows += RowsOfPart(part, rows);
    if (tensor.fp8 != nullptr || !tensor.format.has_value() || tensor.shape.size() != 2 ||
        tensor.shape[0] != num_rows) {
      throw InvalidInput(tensor.file,
                         fmt::format("tensor '{}': found {} {}, expected F32, F16 or BF16 of {} "
                                     "rows, the parts of {}",
                                     tensor.stored_name, tensor.type, ToString(tensor.shape),
                                     num_rows, fmt::join(parts, ", ")));
    }
    const int64_t row_bytes = RowBytes(*tensor.format, tensor.shape[1]);
    const std::byte* data = tensor.data;
    for (const std::string& part : parts) {
      StoredWeight& weight = split.emplace_back(tensor);
      weight.name = part;
      weight.shape[0] = RowsOfPart(part, rows);
      weight.data = data;
      weight.num_bytes = static_cast<uint64_t>(weight.shape[0] * row_bytes);
      data += weight.num_bytes;
    }
  }
  return split;
}

// A file may hold a weight by itself and as a part of another tensor.
void CheckDistinctWeights(const std::vector<StoredWeight>& tensors) {
  std::map<std::string_view, const StoredWeight*> known;
  for (const StoredWeight& tensor : tensors) {
    if (tensor.name.empty()) continue;
    const auto [it, is_new] = known.emplace(tensor.name, &tensor);
    if (is_new) continue;
    throw InvalidInput(tensor.file, fmt::format("tensor '{}': found the weight {} here and in '{}' "
                                                "of {}, expected it once",
                                                tensor.stored_name, tensor.name,
                                                it->second->stored_name, it->second->file));
  }
}

HuggingFaceNaming NamingOf(const std::vector<SafetensorsFile>& files) {
  for (const SafetensorsFile& file : files) {
    for (const auto& [name, view] : file.tensors()) {
      const HuggingFaceNaming naming = NamingShownBy(name);
      if (naming != HuggingFaceNaming::kUsual) return naming;
    }
  }
  return HuggingFaceNaming::kUsual;
}

// A matrix of blocks is a tensor of bytes [rows, blocks of a row, bytes of a block].
void TakeAsBlocks(WeightFormat format, const TensorView& view, StoredWeight& weight) {
  const WeightLayout& layout = LayoutOf(format);
  if (view.dtype != DType::kU8 || view.shape.size() != 3 || view.shape[2] != layout.block_bytes) {
    return;
  }
  weight.type = layout.name;
  weight.format = format;
  weight.shape = {view.shape[0], view.shape[1] * layout.block_values};
}

void Skip(const SkippedBlocks& skipped, std::vector<StoredWeight>& tensors) {
  for (StoredWeight& tensor : tensors) {
    const int64_t block = BlockOfHuggingFace(tensor.stored_name);
    if (block < skipped.first || block >= skipped.first + skipped.count) continue;
    tensor.name.clear();
    tensor.of_block = false;
  }
}

std::vector<StoredWeight> ListTensors(const std::vector<SafetensorsFile>& files,
                                      const FusedRows& rows, const QuantizedTensors& quantized,
                                      const SkippedBlocks& skipped) {
  const std::optional<Fp8Format>& fp8 = quantized.fp8;
  std::vector<StoredWeight> tensors;
  const HuggingFaceNaming naming = NamingOf(files);
  for (const SafetensorsFile& file : files) {
    for (const auto& [name, view] : file.tensors()) {
      StoredWeight& weight = tensors.emplace_back(Describe(file, name, naming));
      weight.type = NameOf(view.dtype);
      weight.format = WeightFormatNamed(weight.type);
      weight.shape = view.shape;
      weight.data = view.data;
      weight.num_bytes = view.num_bytes();
      weight.of_block = IsOfBlockOfHuggingFace(name);
      if (quantized.blocks) TakeAsBlocks(*quantized.blocks, view, weight);
    }
    for (const auto& [name, foreign] : file.foreign_tensors()) {
      StoredWeight& weight = tensors.emplace_back(Describe(file, name, naming));
      weight.type = foreign.dtype;
      weight.shape = foreign.shape;
      weight.num_bytes = foreign.num_bytes;
      if (fp8 && foreign.dtype == "F8_E4M3") weight.data = foreign.data;
    }
  }
  if (fp8) AttachFp8Scales(*fp8, tensors);
  if (skipped.count > 0) Skip(skipped, tensors);
  tensors = SplitFused(internal::SplitExpertStacks(std::move(tensors), rows.num_experts), rows);
  CheckDistinctWeights(tensors);
  return tensors;
}

class SafetensorsSource : public WeightSource {
 public:
  SafetensorsSource(const std::string& place, std::vector<SafetensorsFile> files,
                    const FusedRows& rows, const QuantizedTensors& quantized,
                    const SkippedBlocks& skipped)
      : WeightSource(place,
                     quantized.fp8 ? "F32, F16, BF16 or F8_E4M3"
                     : quantized.blocks
                         ? fmt::format("F32, F16, BF16 or blocks of {}", NameOf(*quantized.blocks))
                         : "F32, F16 or BF16",
                     ListTensors(files, rows, quantized, skipped)),
        files_(std::move(files)),
        naming_(NamingOf(files_)) {}

  int64_t num_files() const override { return std::ssize(files_); }

  std::string StoredName(std::string_view name) const override {
    return HuggingFaceName(name, naming_);
  }

  std::string Identity(std::string_view architecture) const override {
    std::map<std::string_view, const TensorView*> tensors;
    for (const SafetensorsFile& file : files_) {
      for (const auto& [name, view] : file.tensors()) tensors.emplace(name, &view);
    }
    Hash128 hash;
    hash.Update(architecture);
    for (const auto& [name, view] : tensors) {
      hash.Update(fmt::format("{} {} {}\n", name, NameOf(view->dtype), ToString(view->shape)));
      hash.Update(view->data, std::min(view->num_bytes(), kIdentityBytesPerTensor));
    }
    // Behind the others, so that models without such weights keep their identity.
    std::map<std::string_view, const StoredWeight*> fp8_weights;
    for (const StoredWeight& weight : this->tensors()) {
      if (weight.fp8 != nullptr) fp8_weights.emplace(weight.stored_name, &weight);
    }
    for (const auto& [name, weight] : fp8_weights) {
      hash.Update(fmt::format("{} {} {}\n", name, weight->type, ToString(weight->shape)));
      hash.Update(weight->data,
                  std::min(static_cast<size_t>(weight->num_bytes), kIdentityBytesPerTensor));
    }
    return hash.HexDigest();
  }

  void DropPages(const StoredWeight& weight) const override {
    if (weight.fp8 != nullptr)
      return;  // Clean pages of a file: the system takes them when it must.
    for (const SafetensorsFile& file : files_) {
      const TensorView* view = file.Find(weight.stored_name);
      if (view != nullptr) file.DropPages(*view);
    }
  }

 private:
  std::vector<SafetensorsFile> files_;
  HuggingFaceNaming naming_;
};

}  // namespace

std::unique_ptr<const WeightSource> OpenSafetensorsSource(const std::string& folder,
                                                          const FusedRows& rows,
                                                          const QuantizedTensors& quantized,
                                                          const SkippedBlocks& skipped) {
  const std::string weights = JoinPath(folder, kWeightsName);
  const std::string index = JoinPath(folder, kIndexName);
  std::vector<SafetensorsFile> files;
  if (FileExists(weights)) {
    files.push_back(SafetensorsFile::Open(weights));
  } else if (FileExists(index)) {
    files = OpenShards(folder, index);
  } else {
    throw InvalidInput(
        folder, fmt::format("weights: found none, expected {} or {}", kWeightsName, kIndexName));
  }
  CheckDistinct(files);
  return std::make_unique<SafetensorsSource>(folder, std::move(files), rows, quantized, skipped);
}

std::unique_ptr<const WeightSource> MakeSafetensorsSource(const std::string& name,
                                                          std::map<std::string, Tensor> tensors) {
  std::vector<SafetensorsFile> files;
  files.push_back(SafetensorsFile::FromMemory(name, std::move(tensors)));
  return std::make_unique<SafetensorsSource>(name, std::move(files), FusedRows{},
                                             QuantizedTensors{}, SkippedBlocks{});
}

}  // namespace pmkvq
