// The models of tiny_model.h as GGUF files, as llama.cpp's converter would write them.
#pragma once

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "pmkvq/io/gguf/block_decode.h"
#include "pmkvq/io/weights/gguf_names.h"
#include "pmkvq/io/weights/hugging_face_names.h"
#include "support/gguf_writer.h"
#include "support/tiny_model.h"

namespace pmkvq::testing_support {

inline std::string GgufArchitectureOf(const TinyModel& model) {
  if (model.architecture == "Qwen2ForCausalLM") return "qwen2";
  if (model.architecture == "Qwen3ForCausalLM") return "qwen3";
  return "llama";
}

// Whether rows of this weight (a Hugging Face name) are stored in pairs.
inline bool HasPairedRows(const TinyModel& model, const std::string& name) {
  return GgufArchitectureOf(model) == "llama" &&
         (name.find("q_proj") != std::string::npos || name.find("k_proj") != std::string::npos);
}

// Row `row` of the file is this row of the model: heads' halves interleaved.
inline int64_t SplitRow(int64_t row, int64_t head_dim) {
  const int64_t in_head = row % head_dim;
  return row - in_head + in_head % 2 * (head_dim / 2) + in_head / 2;
}

inline GgufWriter GgufMetadataOf(const TinyModel& model) {
  const std::string architecture = GgufArchitectureOf(model);
  const std::string a = architecture + ".";
  GgufWriter writer;
  writer.Text("general.architecture", architecture);
  const auto number = [&](const char* key, int64_t value) {
    writer.U32(a + key, static_cast<uint32_t>(value));
  };
  number("block_count", model.layers);
  number("context_length", 4096);
  number("embedding_length", model.hidden);
  number("feed_forward_length", model.inner);
  number("attention.head_count", model.heads);
  number("attention.head_count_kv", model.kv_heads);
  number("attention.key_length", model.head_dim);
  number("attention.value_length", model.head_dim);
  number("rope.dimension_count", model.head_dim);
  writer.F32(a + "attention.layer_norm_rms_epsilon", 1e-5f);
  writer.F32(a + "rope.freq_base", 10000.0f);
  return writer;
}

inline void AddVector(GgufWriter& writer, const TinyModel& model, const std::string& name,
                      const Tensor& tensor) {
  const std::vector<double> values = Values(tensor);
  std::string data;
  for (size_t i = 0; i < values.size(); ++i) {
    const size_t from = HasPairedRows(model, name)
                            ? static_cast<size_t>(SplitRow(static_cast<int64_t>(i), model.head_dim))
                            : i;
    AppendBytes(data, static_cast<float>(values[from]));
  }
  writer.Tensor(GgufName(CanonicalNameOfHuggingFace(name)), {values.size()}, GgufTensorType::kF32,
                data);
}

// Matrices in the model's dtype, vectors as F32.
inline GgufWriter GgufOf(const TinyModel& model, const TinyWeights& weights) {
  GgufWriter writer = GgufMetadataOf(model);
  for (const auto& [name, tensor] : weights) {
    if (tensor.shape().size() == 1) {
      AddVector(writer, model, name, tensor);
      continue;
    }
    const int64_t rows = tensor.shape()[0];
    const size_t row_bytes = tensor.view().num_bytes() / static_cast<size_t>(rows);
    std::string data;
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t from = HasPairedRows(model, name) ? SplitRow(row, model.head_dim) : row;
      data.append(
          reinterpret_cast<const char*>(tensor.view().data) + static_cast<size_t>(from) * row_bytes,
          row_bytes);
    }
    const GgufTensorType type = tensor.dtype() == DType::kF32   ? GgufTensorType::kF32
                                : tensor.dtype() == DType::kF16 ? GgufTensorType::kF16
                                                                : GgufTensorType::kBF16;
    writer.Tensor(GgufName(CanonicalNameOfHuggingFace(name)),
                  {static_cast<uint64_t>(tensor.shape()[1]), static_cast<uint64_t>(rows)}, type,
                  data);
  }
  return writer;
}

// Random blocks of weights up to about 0.25.
inline std::string RandomBlocks(GgufTensorType type, int64_t num_values, Random& random) {
  struct Scales {
    GgufTensorType type;
    double largest;            // Factor of the scale in a value.
    std::vector<size_t> at;    // F16 scales.
    std::vector<size_t> mins;  // F16 factors of minima.
  };
  static const std::vector<Scales> kScales = {
      {GgufTensorType::kQ4_0, 8, {0}, {}},     {GgufTensorType::kQ4_1, 15, {0}, {2}},
      {GgufTensorType::kQ5_0, 16, {0}, {}},    {GgufTensorType::kQ5_1, 31, {0}, {2}},
      {GgufTensorType::kQ8_0, 128, {0}, {}},   {GgufTensorType::kQ2_K, 45, {80}, {82}},
      {GgufTensorType::kQ3_K, 128, {108}, {}}, {GgufTensorType::kQ4_K, 945, {0}, {2}},
      {GgufTensorType::kQ5_K, 1953, {0}, {2}}, {GgufTensorType::kQ6_K, 4096, {208}, {}},
      {GgufTensorType::kIQ4_NL, 127, {0}, {}}, {GgufTensorType::kIQ4_XS, 4064, {0}, {}}};
  const GgufTensorLayout& layout = LayoutOf(type);
  std::string data;
  for (int64_t block = 0; block < num_values / layout.block_values; ++block) {
    const size_t begin = data.size();
    if (layout.block_values == 1) {
      const auto value = static_cast<float>(0.1 * NormalDraw(random));
      if (type == GgufTensorType::kF32) AppendBytes(data, value);
      if (type == GgufTensorType::kF16) AppendBytes(data, ToF16(value));
      if (type == GgufTensorType::kBF16) AppendBytes(data, ToBF16(value));
      continue;
    }
    for (int64_t i = 0; i < layout.block_bytes; ++i) {
      data += static_cast<char>(random.Below(256));
    }
    if (type == GgufTensorType::kMXFP4) {
      data[begin] = static_cast<char>(120 + random.Below(3));
      continue;
    }
    for (const Scales& scales : kScales) {
      if (scales.type != type) continue;
      const auto put = [&](size_t at, double value) {
        const F16 half = ToF16(static_cast<float>(value));
        std::memcpy(data.data() + begin + at, &half, sizeof(half));
      };
      const double spread = 0.25 * (0.25 + 0.75 * random.Uniform());
      for (const size_t at : scales.at) put(at, spread / scales.largest);
      const bool is_k = layout.block_values == 256;
      for (const size_t at : scales.mins) put(at, is_k ? spread / 63 : -spread / 2);
    }
  }
  return data;
}

// All matrices as random blocks of `type`; `weights` becomes their values, in the model's order, as
// F32. Rows have to be whole blocks.
inline GgufWriter RandomGgufOf(const TinyModel& model, GgufTensorType type, TinyWeights& weights) {
  Random random(model.seed + static_cast<uint64_t>(type));
  GgufWriter writer = GgufMetadataOf(model);
  for (auto& [name, tensor] : weights) {
    if (tensor.shape().size() == 1) {
      AddVector(writer, model, name, tensor);
      continue;
    }
    const int64_t rows = tensor.shape()[0];
    const int64_t cols = tensor.shape()[1];
    const std::string data = RandomBlocks(type, rows * cols, random);
    writer.Tensor(GgufName(CanonicalNameOfHuggingFace(name)),
                  {static_cast<uint64_t>(cols), static_cast<uint64_t>(rows)}, type, data);
    std::vector<float> values(static_cast<size_t>(rows * cols));
    DecodeBlocks(type, reinterpret_cast<const std::byte*>(data.data()), rows * cols, values.data());
    tensor = Tensor(DType::kF32, {rows, cols});
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t to = HasPairedRows(model, name) ? SplitRow(row, model.head_dim) : row;
      std::memcpy(tensor.As<float>() + to * cols, values.data() + row * cols,
                  static_cast<size_t>(cols) * sizeof(float));
    }
  }
  return writer;
}

}  // namespace pmkvq::testing_support
