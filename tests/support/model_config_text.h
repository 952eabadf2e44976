// Texts of config.json with changed fields, and what reading them gives.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <initializer_list>
#include <map>
#include <string>

#include "pmkvq/io/model_config.h"
#include "support/expect_error.h"

namespace pmkvq::testing_support {

// Field -> JSON text. An empty text removes the field.
using Fields = std::map<std::string, std::string>;

inline std::string ConfigText(const std::string& architecture, const Fields& changes) {
  Fields fields = {{"architectures", fmt::format("[\"{}\"]", architecture)},
                   {"vocab_size", "1000"},
                   {"hidden_size", "512"},
                   {"intermediate_size", "1024"},
                   {"num_hidden_layers", "4"},
                   {"num_attention_heads", "8"},
                   {"num_key_value_heads", "2"},
                   {"max_position_embeddings", "32768"},
                   {"rms_norm_eps", "1e-5"},
                   {"rope_theta", "500000.0"},
                   {"hidden_act", "\"silu\""}};
  for (const auto& [key, value] : changes) {
    if (value.empty()) {
      fields.erase(key);
    } else {
      fields[key] = value;
    }
  }
  std::string text = "{";
  for (const auto& [key, value] : fields) {
    text += fmt::format("{}\"{}\":{}", text.size() > 1 ? "," : "", key, value);
  }
  return text + "}";
}

inline ModelConfig Parse(const std::string& architecture, const Fields& changes = {}) {
  return ParseModelConfig(JsonValue::Parse(ConfigText(architecture, changes), "config.json"));
}

inline ModelConfig Llama(const Fields& changes = {}) { return Parse("LlamaForCausalLM", changes); }

template <class ErrorType>
void ExpectBad(const std::string& architecture, const Fields& changes,
               std::initializer_list<std::string> parts) {
  SCOPED_TRACE(ConfigText(architecture, changes));
  ExpectError<ErrorType>([&] { Parse(architecture, changes); }, parts);
}

inline Fields Gemma(Fields changes = {}) {
  changes.emplace("hidden_act", "");
  changes.emplace("rope_theta", "");
  changes.emplace("num_hidden_layers", "8");
  return changes;
}

}  // namespace pmkvq::testing_support
