// One token of each sequence into pages, from heads that another library computed: in its float
// type, without a copy. What is stored is what AppendTokens stores of the same values.
//
// Threads: one caller per stream. Errors: a wrong shape is a caller's bug; Unsupported in a program
// without CUDA; DeviceError.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pmkvq/kernels/kv_quant/page_moves.h"
#include "pmkvq/tensor/device/stream.h"
#include "pmkvq/tensor/dtype.h"

namespace pmkvq {

// All pointers are of the device. A value x of a query counts as x * (its factor * query_factor),
// one of a key as x * its factor: products of floats, as on the CPU.
struct GivenHeads {
  const std::byte* q = nullptr;  // [B, H, D]; null: no queries.
  const std::byte* k = nullptr;  // [B, Hkv, D]
  const std::byte* v = nullptr;  // [B, Hkv, D]
  DType type = DType::kF32;      // Of q, k and v: F32, F16 or BF16.
  float query_factor = 1.0f;
  const float* query_factors = nullptr;  // [H, D]; null: 1.
  const float* key_factors = nullptr;    // [Hkv, D]; null: 1.
};

// AppendTokens of `heads`; q, k and v of `operands` are not read.
void AppendGivenHeads(int64_t num_kv_heads, int64_t head_dim, DType float_type,
                      const GivenHeads& heads, const AppendOperands& operands, Stream& stream);

}  // namespace pmkvq
