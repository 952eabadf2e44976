// Weights in GGUF files (io/gguf/).
#pragma once

#include <memory>

#include "pmkvq/io/gguf/gguf_file.h"
#include "pmkvq/io/weights/weight_source.h"

namespace pmkvq {

// Takes over the mapped files. All types of io/gguf/tensor_types.h are weight formats
// (tensor/weight_format.h), used as stored. In files of the architecture llama, rows of q and k,
// and values of their biases, lie in pairs: llama.cpp rotates neighbours in these models, and
// halves in others. `head_dim` is the number of rows of a head.
//
// A tensor [H, rows, cols] of latent attention is one matrix [H * rows, cols].
//
// A tensor [n, rows, cols] of all experts of a block is listed as n matrices, which are views of
// its bytes; `num_experts` is n, 0 for a model without. Throws InvalidInput for another number.
//
// Identity: 128-bit xxHash over the architecture and, in order of name, each tensor's name, type,
// sizes and the first 64 KiB of its stored bytes.
std::unique_ptr<const WeightSource> MakeGgufSource(GgufSet files, int64_t head_dim,
                                                   int64_t num_experts = 0);

}  // namespace pmkvq
