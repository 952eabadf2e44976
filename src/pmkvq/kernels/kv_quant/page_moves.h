// Quantising, halving, expanding and appending to pages in a CUDA device's memory, in fragment
// order (fragment_layout.h). Codes and (min, range) are those of the CPU (kv_quant.h), bit by bit.
//
// All functions launch on the stream and return. Pages lie in one arena; offsets are bytes, and
// multiples of 256. Moves of one call run in any order: none may write what another reads or
// writes. Groups: FragmentPageShape. F16 and BF16 floats; metadata has their
// type.
//
// Threads: one caller per stream. Errors: a wrong shape is a caller's bug; Unsupported in a program
// without CUDA; DeviceError.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "pmkvq/kernels/kv_quant/fragment_page.h"
#include "pmkvq/tensor/device/stream.h"
#include "pmkvq/tensor/dtype.h"

namespace pmkvq {

struct PageMove {
  size_t source = 0;
  size_t target = 0;
  size_t metadata = 0;  // Written by QuantizePages, read by ExpandPages.
};

// Whole pages of 16 bits straight to codes of 8, 4 or 2 bits, and their (min, range). Where the
// range of a group does not fit the float type it is saturated (kv_quant.h), and *unfit, a word on
// the device, becomes the least of itself and first_index + the move's index.
void QuantizePages(const FragmentPageShape& shape, DType float_type, int bits,
                   std::span<const PageMove> moves, std::byte* arena, uint32_t* unfit,
                   uint32_t first_index, Stream& stream);

// Codes to half or a quarter of their bits, in another slot.
void HalvePages(const FragmentPageShape& shape, int from_bits, int to_bits,
                std::span<const PageMove> moves, std::byte* arena, Stream& stream);

// The same where source and target are one slot, whose front then has the page.
void HalvePagesInPlace(const FragmentPageShape& shape, int from_bits, int to_bits,
                       std::span<const PageMove> moves, std::byte* arena, Stream& stream);

// Codes to floats of 16 bits, which become code * step + min rounded, F16 held at +-65504.
void ExpandPages(const FragmentPageShape& shape, DType float_type, int bits,
                 std::span<const PageMove> moves, std::byte* arena, Stream& stream);

// Where a sequence's next token goes.
struct AppendTarget {
  uint32_t k = 0;  // Its open page of keys, in units of 256 bytes; or the sink's rest of keys.
  uint32_t v = 0;
  int32_t index = 0;     // Of the token in the page, or in the rest.
  int32_t capacity = 0;  // Above 0: a sink's rest, row-major [Hkv, capacity, D]. Else:
  static constexpr int32_t kPage = 0;
  static constexpr int32_t kNothing = -1;     // There is no such sequence.
  static constexpr int32_t kZeroedPage = -2;  // A page whose values are 0 where there are none.
};

// What is not finite once rounded.
enum class UnfitRow : uint32_t { kKey = 0, kValue = 1, kQuery = 2 };
inline constexpr uint32_t kUnfitKinds = 4;  // Words count in so many.
inline constexpr uint32_t kAllFit = 0xffffffffu;

// Stores one token of each sequence, rounded to the float type, and rounds its queries to F16. The
// first token of a kPage zeroes the page of values, since attention multiplies unused values by 0.
struct AppendOperands {
  const float* q = nullptr;               // [B, H, D], on the device as all of these; may be null.
  const float* k = nullptr;               // [B, Hkv, D]
  const float* v = nullptr;               // [B, Hkv, D]
  const AppendTarget* targets = nullptr;  // [B]
  std::byte* q_rounded = nullptr;         // F16 [B, H, D]
  std::byte* arena = nullptr;
  // [B]: a word becomes the least of itself and kUnfitKinds * block + UnfitRow, where a value of
  // the sequence is not finite once rounded.
  uint32_t* unfit = nullptr;
  uint32_t block = 0;
  bool is_bf16 = false;       // Of MakeHeadRows: pages are BF16, else F16.
  int64_t num_sequences = 0;  // B
  int64_t num_heads = 0;      // H
};
void AppendTokens(int64_t num_kv_heads, int64_t head_dim, DType float_type,
                  const AppendOperands& operands, Stream& stream);

}  // namespace pmkvq
