// A tiny model with float8 weights, and what these stand for.
#pragma once

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "pmkvq/io/weights/fp8_weights.h"
#include "support/tiny_model.h"

namespace pmkvq::testing_support {

// Codes and scales of every projection, beside what they stand for.
struct Fp8Model {
  static constexpr int64_t kBlock = 24;  // Divides no size of the model.

  // One scale for each block of kBlock x kBlock, or for each row.
  explicit Fp8Model(bool by_row = false, TinyModel model = {}) : tiny(std::move(model)) {
    tiny.dtype = DType::kBF16;
    plain = MakeTinyWeights(tiny);
    Random random(11);
    for (auto& [name, tensor] : plain) {
      if (name.find("_proj") == std::string::npos || !name.ends_with(".weight")) {
        fp8.emplace(name, tensor);
        continue;
      }
      const Shape shape = tensor.shape();
      Tensor codes(DType::kU8, shape);
      for (int64_t i = 0; i < codes.num_elements(); ++i) {
        codes.As<uint8_t>()[i] = static_cast<uint8_t>(random.Below(2) * 128 + random.Below(0x50));
      }
      const Shape grid =
          by_row ? Shape{shape[0], 1}
                 : Shape{(shape[0] + kBlock - 1) / kBlock, (shape[1] + kBlock - 1) / kBlock};
      Tensor scales(DType::kF32, grid);
      for (int64_t i = 0; i < scales.num_elements(); ++i) {
        scales.As<float>()[i] = static_cast<float>(0.01 + 0.04 * random.Uniform());
      }
      StoredWeight weight;
      weight.name = "blocks.";
      weight.stored_name = name;
      weight.type = "F8_E4M3";
      weight.shape = shape;
      weight.data = codes.data();
      StoredWeight scale;
      scale.stored_name = name + "_scale_inv";
      scale.type = "F32";
      scale.format = WeightFormat::kF32;
      scale.shape = grid;
      scale.data = scales.data();
      std::vector<StoredWeight> tensors = {weight, scale};
      AttachFp8Scales(by_row ? Fp8Format{} : Fp8Format{kBlock, kBlock}, tensors);
      ExpandFp8(tensors[0], 1, tensor.As<BF16>());
      fp8.emplace(name + "_scale_inv", scales);
      fp8.emplace(name, codes);
    }
  }

  // safetensors with the codes' type changed in its header: no tensor here has that type.
  void WriteFp8(const TempFolder& folder, const std::string& quantization) const {
    WriteTinyModel(tiny, fp8, folder);
    std::string config = TinyConfigJson(tiny);
    config.insert(1, "\"quantization_config\": " + quantization + ",\n");
    folder.Write("config.json", config);
    const std::string file = Slurp(folder.File("model.safetensors"));
    uint64_t size = 0;
    std::memcpy(&size, file.data(), sizeof(size));
    std::string header = file.substr(8, size);
    for (size_t at = header.find("\"U8\""); at != std::string::npos; at = header.find("\"U8\"")) {
      header.replace(at, 4, "\"F8_E4M3\"");
    }
    const uint64_t new_size = header.size();
    std::string start(8, '\0');
    std::memcpy(start.data(), &new_size, sizeof(new_size));
    folder.Write("model.safetensors", start + header + file.substr(8 + size));
  }

  TinyModel tiny;
  TinyWeights plain;
  TinyWeights fp8;
};

}  // namespace pmkvq::testing_support
