// The quantization_config of a checkpoint: float8 weights are read, other methods are refused by
// name.
#pragma once

#include <cstdint>
#include <optional>

#include "pmkvq/io/json.h"

namespace pmkvq {

// How the float8 weights of a checkpoint are scaled: a weight is its code times the scale of its
// tensor, its row or its block. Which of them follows from the shape of the scales; the size of a
// block from the config.
struct Fp8Format {
  int64_t block_rows = 0;  // 0: there are no blocks.
  int64_t block_cols = 0;
};

// `config` is the whole config.json. Nothing where no weights are quantised.
// Read: quant_method "fp8" (DeepSeek's and Qwen's, e4m3, weight_block_size or one scale a tensor),
// "fbgemm_fp8", and "compressed-tensors" with weights of float 8 (strategies tensor, channel,
// block). Activations stay floats, whatever the config says of them. Throws Unsupported naming the
// field, the method found, and what to use instead: GPTQ, AWQ, bitsandbytes and all others;
// InvalidInput for malformed fields.
std::optional<Fp8Format> ParseQuantizationConfig(const JsonValue& config);

}  // namespace pmkvq
