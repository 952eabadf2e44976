// The quantization_config of a checkpoint: float8 weights are read, and blocks of 4 bits that
// `pmkvq quantize` wrote; other methods are refused by name.
#pragma once

#include <cstdint>
#include <optional>

#include "pmkvq/io/json.h"
#include "pmkvq/tensor/weight_format.h"

namespace pmkvq {

// How the float8 weights of a checkpoint are scaled: a weight is its code times the scale of its
// tensor, its row or its block. Which of them follows from the shape of the scales; the size of a
// block from the config.
struct Fp8Format {
  int64_t block_rows = 0;  // 0: there are no blocks.
  int64_t block_cols = 0;
};

// quant_method of folders that `pmkvq quantize` writes. Its member "format" names the format of the
// blocks, whose tensors are U8 [rows, blocks of a row, bytes of a block].
inline constexpr char kBlockMethod[] = "pmkvq";
inline constexpr WeightFormat kStoredBlockFormat = WeightFormat::kQ4_1;
// That format, where the method is kBlockMethod. `config` is the whole config.json. Throws
// Unsupported for another format.
std::optional<WeightFormat> ParseBlockFormat(const JsonValue& config);

// `config` is the whole config.json. Nothing where no weights are float8.
// Read: quant_method "fp8" (DeepSeek's and Qwen's, e4m3, weight_block_size or one scale a tensor),
// "fbgemm_fp8", and "compressed-tensors" with weights of float 8 (strategies tensor, channel,
// block). Nothing is returned for kBlockMethod. Activations stay floats, whatever the config says
// of them. Throws Unsupported naming the field, the method found, and what to use instead: GPTQ,
// AWQ, bitsandbytes and all others; InvalidInput for malformed fields.
std::optional<Fp8Format> ParseQuantizationConfig(const JsonValue& config);

}  // namespace pmkvq
