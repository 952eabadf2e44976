#include "pmkvq/research/methods/method_data.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <cstring>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/io/safetensors.h"

namespace pmkvq {
namespace {

constexpr char kFormat[] = "pmkvq-method-data";
constexpr char kVersion[] = "1";
// Bounds that no model reaches and no product of which overflows.
constexpr int64_t kMaxLayers = 10'000;
constexpr int64_t kMaxHeads = 1 << 20;
constexpr int64_t kMaxTokens = int64_t{1} << 40;

using Metadata = std::map<std::string, std::string>;

// The metadata of one file, read field by field.
class Fields {
 public:
  explicit Fields(const SafetensorsFile& file) : file_(file) {}

  bool Has(const std::string& name) const { return file_.metadata().count(name) > 0; }

  const std::string& Text(const std::string& name) const {
    const auto found = file_.metadata().find(name);
    if (found == file_.metadata().end()) {
      throw InvalidInput(file_.path(), fmt::format("no field '{}' in the header's metadata, "
                                                   "expected a file made by pmkvq calibrate --kv",
                                                   name));
    }
    return found->second;
  }

  void Expect(const std::string& name, const std::string& expected) const {
    const std::string& found = Text(name);
    if (found == expected) return;
    throw InvalidInput(file_.path(),
                       fmt::format("{}: found '{}', expected '{}'", name, found, expected));
  }

  template <class Number>
  Number Read(const std::string& name, Number least, Number most) const {
    const std::string& text = Text(name);
    Number value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || end != text.data() + text.size() || value < least || value > most) {
      throw InvalidInput(file_.path(), fmt::format("{}: found '{}', expected a number from {} to "
                                                   "{}",
                                                   name, text, least, most));
    }
    return value;
  }

 private:
  const SafetensorsFile& file_;
};

UniformKvGeometry ReadGeometry(const Fields& fields, const std::string& path) {
  UniformKvGeometry geometry;
  geometry.num_layers = fields.Read<int64_t>("num_layers", 1, kMaxLayers);
  geometry.num_heads = fields.Read<int64_t>("num_heads", 1, kMaxHeads);
  geometry.num_kv_heads = fields.Read<int64_t>("num_kv_heads", 1, kMaxHeads);
  geometry.head_dim = fields.Read<int64_t>("head_dim", 8, 256);
  if (geometry.num_heads % geometry.num_kv_heads != 0) {
    throw InvalidInput(path, fmt::format("num_heads: found {}, expected a multiple of "
                                         "num_kv_heads {}",
                                         geometry.num_heads, geometry.num_kv_heads));
  }
  return geometry;
}

CalibrationRecord ReadRecord(const Fields& fields) {
  CalibrationRecord record;
  record.dataset = fields.Text("dataset");
  record.pack = fields.Text("pack");
  record.num_samples = fields.Read<int64_t>("num_samples", 0, kMaxTokens);
  record.seq_len = fields.Read<int64_t>("seq_len", 0, kMaxTokens);
  record.effective_len = fields.Read<int64_t>("effective_len", 0, kMaxTokens);
  record.seed = fields.Read<uint64_t>("seed", 0, UINT64_MAX);
  if (fields.Has("weights")) record.weights = fields.Text("weights");
  return record;
}

Tensor ReadTensor(const std::string& path, const std::string& name, const TensorView& view) {
  if (view.dtype != DType::kF32) {
    throw InvalidInput(path, fmt::format("{}: found another type, expected F32", name));
  }
  Tensor tensor(DType::kF32, view.shape);
  std::memcpy(tensor.data(), view.data, view.num_bytes());
  const float* values = tensor.As<float>();
  for (int64_t i = 0; i < tensor.num_elements(); ++i) {
    if (!std::isfinite(values[i])) {
      throw InvalidInput(path, fmt::format("{}: found {} at index {}, expected finite numbers",
                                           name, values[i], i));
    }
  }
  return tensor;
}

}  // namespace

const Tensor& MethodData::Get(const std::string& name, const Shape& shape) const {
  const auto found = tensors.find(name);
  if (found == tensors.end()) {
    throw InvalidInput(path, fmt::format("no tensor '{}', expected one for {}", name, method));
  }
  if (found->second.shape() != shape) {
    throw InvalidInput(path, fmt::format("{}: found shape {}, expected {}", name,
                                         ToString(found->second.shape()), ToString(shape)));
  }
  return found->second;
}

std::string BlockTensorName(const std::string& name, int64_t layer) {
  return fmt::format("{}.{}", name, layer);
}

std::string ExpectedMethodData(const std::string& method) {
  return fmt::format(
      "from=FILE (made by pmkvq calibrate --kv {} --model MODEL --dataset TEXTS "
      "--out FILE)",
      method);
}

void SaveMethodData(const MethodData& data, const std::string& path) {
  std::map<std::string, TensorView> tensors;
  for (const auto& [name, tensor] : data.tensors) tensors[name] = tensor.view();
  Metadata metadata = {
      {"format", kFormat},
      {"version", kVersion},
      {"method", data.method},
      {"spec", data.spec},
      {"model_identity", data.model_identity},
      {"num_layers", std::to_string(data.geometry.num_layers)},
      {"num_heads", std::to_string(data.geometry.num_heads)},
      {"num_kv_heads", std::to_string(data.geometry.num_kv_heads)},
      {"head_dim", std::to_string(data.geometry.head_dim)},
      {"dataset", data.record.dataset},
      {"pack", data.record.pack},
      {"num_samples", std::to_string(data.record.num_samples)},
      {"seq_len", std::to_string(data.record.seq_len)},
      {"effective_len", std::to_string(data.record.effective_len)},
      {"seed", std::to_string(data.record.seed)},
  };
  if (data.record.weights != CalibrationRecord::kStoredWeights) {
    metadata["weights"] = data.record.weights;
  }
  WriteSafetensors(path, tensors, metadata);
}

MethodData LoadMethodData(const std::string& path) {
  const SafetensorsFile file = SafetensorsFile::Open(path);
  const Fields fields(file);
  fields.Expect("format", kFormat);
  fields.Expect("version", kVersion);
  MethodData data;
  data.path = path;
  data.method = fields.Text("method");
  data.spec = fields.Text("spec");
  data.model_identity = fields.Text("model_identity");
  data.geometry = ReadGeometry(fields, path);
  data.record = ReadRecord(fields);
  for (const auto& [name, view] : file.tensors()) {
    data.tensors.emplace(name, ReadTensor(path, name, view));
  }
  return data;
}

}  // namespace pmkvq
