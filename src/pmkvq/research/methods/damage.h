// A cache method applied to tensors that are given, without a model: what `pmkvq damage` does.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pmkvq/base/interrupt.h"
#include "pmkvq/io/safetensors.h"
#include "pmkvq/tensor/tensor.h"

namespace pmkvq {

struct DamageOptions {
  std::string spec;
  DType kv_dtype = DType::kF16;  // Of values at full precision, and of metadata.
  // The first tokens, which are appended together and end a prompt. The others come one by one.
  int64_t prompt_len = 0;
  const CancelFlag* cancel = nullptr;
};

struct DamageResult {
  // [L, Hkv, T, D] f32, what attention reads after the last token. Keys before RoPE of a method
  // that works there. Rows that were evicted are as the method left them.
  Tensor k_read;
  Tensor v_read;
  Tensor kept;  // [L, Hkv, T] u8: 1, or 0 where the token was evicted.
  // [T], of all blocks, once so many tokens are stored: bytes[0] is after the first one. Inside the
  // prompt: the most that the method may hold there.
  std::vector<int64_t> bytes;
  int64_t peak_bytes = 0;
  double kept_share = 1;  // KvSequenceStats::kept_share
};

// Tensors of `in`, of F32, F16, BF16 or F64:
//   k, v [L, Hkv, T, D]            k after RoPE
// and, where the method asks for them,
//   q [L, H, T, D]                 after RoPE
//   keys_before_rope [L, Hkv, T, D]    in place of k
//   attention_input, block_input [L, T, E]
//   logits [T, V]
// A file of the key from= is taken without asking which model it was made for.
// Throws InvalidInput: the file and the tensor (missing, another type or shape, a value that is not
// finite), --kv (unknown SPEC, keys that do not suit the shapes), --prompt-len; Cancelled.
DamageResult DamageTensors(const SafetensorsFile& in, const DamageOptions& options);

}  // namespace pmkvq
