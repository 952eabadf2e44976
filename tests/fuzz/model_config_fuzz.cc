// The config.json parser. Input: the JSON text.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "pmkvq/base/error.h"
#include "pmkvq/io/model_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const pmkvq::ModelConfig config =
        pmkvq::ParseModelConfig(pmkvq::JsonValue::Parse(text, "fuzz"));
    // What later stages rely on.
    const bool sound = config.num_layers > 0 && config.num_kv_heads > 0 &&
                       config.num_heads % config.num_kv_heads == 0 && config.head_dim >= 8 &&
                       config.head_dim <= 256 && config.head_dim % config.group_size() == 0 &&
                       config.rms_norm_eps > 0 && config.rope_theta > 0 &&
                       config.rope_scaling.factor >= 1 && config.rope_scaling.attention_factor > 0;
    if (!sound) std::abort();
  } catch (const pmkvq::Error&) {
  }
  return 0;
}
