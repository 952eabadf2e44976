// Metadata of a GGUF file to a ModelConfig (docs/formats.md has the keys).
#pragma once

#include <string>
#include <vector>

#include "pmkvq/io/gguf/gguf_file.h"
#include "pmkvq/io/model_config.h"

namespace pmkvq {

// Architectures llama, qwen2, qwen3 and qwen3moe; others are refused by name. llama with experts is
// Mixtral. What the metadata does not say follows from the tensors: biases, a tied output head,
// RoPE factors, which blocks have experts.
//
// `warnings`, unless null, gets one line for each thing that a user should know of a file that can
// be used.
// Throws InvalidInput and Unsupported naming file, key, value found and what was expected, also for
// a file without tensors (a vocabulary only).
ModelConfig ParseGgufConfig(const GgufSet& file, std::vector<std::string>* warnings = nullptr);

// What general.architecture says. Throws InvalidInput where it is missing, Unsupported listing the
// known ones for others.
std::string GgufArchitecture(const GgufSet& file);

}  // namespace pmkvq
