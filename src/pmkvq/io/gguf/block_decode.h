// Blocks of GGUF tensors to floats. Layouts and formulas are in docs/formats.md.
//
// Each value is rounded as gguf-py does it: scales and minima are multiplied in float first, then
// with the code, then subtracted. The same bits on every machine.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pmkvq/io/gguf/tensor_types.h"

namespace pmkvq {

// out [num_values] = the values of whole blocks that follow each other; num_values is a multiple of
// the type's block (check). `data` needs no alignment.
void DecodeBlocks(GgufTensorType type, const std::byte* data, int64_t num_values, float* out);

namespace ref {
// Scalar oracle: value `index` of blocks that follow each other.
float DecodeBlockValue(GgufTensorType type, const std::byte* data, int64_t index);
}  // namespace ref

}  // namespace pmkvq
