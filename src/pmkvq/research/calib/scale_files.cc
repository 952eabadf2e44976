#include "pmkvq/research/calib/scale_files.h"

#include <fmt/format.h>

#include <cmath>
#include <cstddef>
#include <cstring>
#include <map>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/io/safetensors.h"
#include "pmkvq/kv/key_scales.h"

namespace pmkvq {
namespace {

constexpr const char* kIdentityKey = "model_identity";

std::string TensorName(ScaleFileKind kind, size_t block) {
  return fmt::format("{}.{}", kind == ScaleFileKind::kMaxKeys ? "max_keys" : "rep_scales", block);
}

void CheckValues(ScaleFileKind kind, const Tensor& tensor, const std::string& name,
                 const std::string& path) {
  const bool zero_allowed = kind == ScaleFileKind::kMaxKeys;
  const float* values = tensor.As<float>();
  for (int64_t i = 0; i < tensor.num_elements(); ++i) {
    if (!std::isfinite(values[i]) || values[i] < 0 || (values[i] == 0 && !zero_allowed)) {
      throw InvalidInput(path, fmt::format("{}: found {} at index {}, expected a finite number {}",
                                           name, values[i], i, zero_allowed ? ">= 0" : "> 0"));
    }
  }
}

void CheckIdentity(const SafetensorsFile& file, const std::string& model_identity) {
  const auto found = file.metadata().find(kIdentityKey);
  if (found != file.metadata().end() && found->second != model_identity) {
    throw InvalidInput(
        file.path(), fmt::format("made for model {}, expected {}", found->second, model_identity));
  }
}

}  // namespace

void WriteScaleFile(ScaleFileKind kind, const std::vector<Tensor>& blocks,
                    const std::string& model_identity, const std::string& path) {
  std::map<std::string, TensorView> tensors;
  for (size_t block = 0; block < blocks.size(); ++block) {
    tensors[TensorName(kind, block)] = blocks[block].view();
  }
  WriteSafetensors(path, tensors, {{kIdentityKey, model_identity}});
}

std::vector<Tensor> ReadScaleFile(ScaleFileKind kind, const KvGeometry& geometry,
                                  const std::string& model_identity, const std::string& path) {
  const SafetensorsFile file = SafetensorsFile::Open(path);
  CheckIdentity(file, model_identity);
  const size_t num_blocks = geometry.blocks.size();
  std::vector<Tensor> blocks;
  for (size_t block = 0; block < num_blocks; ++block) {
    const std::string name = TensorName(kind, block);
    const Shape shape = KeyScales::ShapeOf(geometry.blocks[block]);
    const TensorView& view = file.Get(name, DType::kF32, shape);
    Tensor tensor(DType::kF32, shape);
    // Copied by bytes: tensors of foreign files may be misaligned.
    std::memcpy(tensor.As<float>(), view.data, view.num_bytes());
    CheckValues(kind, tensor, name, path);
    blocks.push_back(std::move(tensor));
  }
  if (file.tensors().size() != num_blocks) {
    throw InvalidInput(path, fmt::format("found {} tensors, expected {}, one per block",
                                         file.tensors().size(), num_blocks));
  }
  return blocks;
}

}  // namespace pmkvq
