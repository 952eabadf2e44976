// The safetensors files of `max-keys` and `rep-scales`: one tensor f32 per block, of
// KeyScales::ShapeOf, named `max_keys.{block}` or `rep_scales.{block}`; the metadata names the
// model (docs/formats.md).
#pragma once

#include <string>
#include <vector>

#include "pmkvq/kv/kv_geometry.h"
#include "pmkvq/tensor/tensor.h"

namespace pmkvq {

enum class ScaleFileKind : uint8_t { kMaxKeys, kRepScales };

// Throws IoError.
void WriteScaleFile(ScaleFileKind kind, const std::vector<Tensor>& blocks,
                    const std::string& model_identity, const std::string& path);

// Throws IoError, and InvalidInput naming file and tensor: a block missing or too many, another
// dtype or shape, a value that is not finite, is negative, or (rep_scales) is zero; made for
// another model (a file that names no model is accepted).
std::vector<Tensor> ReadScaleFile(ScaleFileKind kind, const KvGeometry& geometry,
                                  const std::string& model_identity, const std::string& path);

}  // namespace pmkvq
