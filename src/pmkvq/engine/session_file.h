// A session in a file: the tokens of a sequence and its part of the cache. A safetensors file, see
// docs/formats.md. Private to this module.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pmkvq/kv/sequence_image.h"

namespace pmkvq {

struct StoredSession {
  std::string model_identity;   // Checkpoint::Identity
  std::string note;             // The caller's; any text.
  std::vector<int32_t> tokens;  // Of the image, as many as it stores.
  SequenceImage image;
};

// Replaces the file when it is complete. Throws IoError.
void WriteSession(const std::string& path, const StoredSession& session);

// Checks the container and that nothing in it was changed since; the store checks the image.
// Throws IoError, InvalidInput (another model too), naming the field.
StoredSession ReadSession(const std::string& path, const std::string& model_identity);

}  // namespace pmkvq
