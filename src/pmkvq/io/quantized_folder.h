// Writes a model folder whose matrices are blocks of 4 bits, which Checkpoint::Open reads.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "pmkvq/io/checkpoint.h"

namespace pmkvq {

// A matrix [rows, cols] of kStoredBlockFormat (quantization_config.h); cols fill whole blocks.
struct StoredBlocks {
  const std::byte* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
};

// Throws IoError when `folder` is there and not an empty folder, or cannot be made; Unsupported
// when `checkpoint` is not a Hugging Face folder.
void CheckQuantizedFolder(const Checkpoint& checkpoint, const std::string& folder);

// Makes `folder`: the files of the tokenizer and generation_config.json of the checkpoint's folder
// as they are; model.safetensors, where `matrices`, by canonical name, take the places of what the
// checkpoint has, and "output_head" is added where it is tied; last config.json, with a
// quantization_config, and tie_word_embeddings false where a head was added. `made` says how the
// blocks were made, members of the quantization_config; all of them strings.
// Throws as CheckQuantizedFolder, IoError, and Unsupported for a float8 tensor that is not among
// `matrices`.
void WriteQuantizedFolder(const Checkpoint& checkpoint,
                          const std::map<std::string, StoredBlocks>& matrices,
                          const std::map<std::string, std::string>& made,
                          const std::string& folder);

}  // namespace pmkvq
