// Decode attention on a CUDA device: the newest token of each sequence attends to everything that
// its cache holds, itself included (it is stored first: kv_quant/page_moves.h).
//
//   out[b, h] = sum_m softmax_m(scale * q[b, h] . K[m, g]) V[m, g],   g = h / (H / Hkv)
//
// over the sequence's tokens m as they are stored, or, with a sliding window, the newest W of them.
// Pages lie in one arena, in fragment order
// (kv_quant/fragment_layout.h), at any width of K and V; the sink's rest lies beside them. All that
// changes from step to step is in device memory, so a captured launch stays right when lengths,
// widths and pages change.
//
// Bits: a sequence's output depends on its own pages alone. They are cut into runs by their number
// (RunPages), the runs' partial results are merged in order. What the other sequences are, and the
// size of the device, changes nothing.
//
// Numerics: queries are F16, 16-bit pages F16 or BF16. Weights times steps are F16, sums are float;
// with heads of 256 values and with BF16 all arithmetic is float, and slower (decode_float.cuh).
// Relative error of a head against the exact result: docs/numerics.md.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "pmkvq/kernels/device_rows/device_rows.h"
#include "pmkvq/kernels/kv_quant/fragment_layout.h"
#include "pmkvq/kernels/kv_quant/page_entry.h"
#include "pmkvq/tensor/device/buffer.h"
#include "pmkvq/tensor/device/stream.h"
#include "pmkvq/tensor/dtype.h"

namespace pmkvq {

// How a sequence's tokens are laid out: whole pieces of the sink, which are pages; the sink's rest,
// which is none; pages.
struct SinkLayout {
  int32_t piece_tokens = 0;  // A multiple of 128.
  int32_t rest_tokens = 0;   // 0 to 127.

  PMKVQ_HOST_DEVICE int32_t InRest(int32_t num_tokens) const {
    const int32_t behind = num_tokens - piece_tokens;
    return behind < 0 ? 0 : (behind < rest_tokens ? behind : rest_tokens);
  }
  PMKVQ_HOST_DEVICE int32_t InPages(int32_t num_tokens) const {
    return num_tokens - InRest(num_tokens);
  }
};

struct DecodeShape {
  int64_t num_heads = 0;     // H
  int64_t num_kv_heads = 0;  // Hkv
  int64_t head_dim = 0;      // D: 64, 128 or 256.
  float scale = 1.0f;
  DType float_type = DType::kF16;  // Of 16-bit pages, sinks and metadata.
  SinkLayout sink;
  int64_t sliding_window = 0;    // W; 0: none. The sink is hidden as any other token is.
  bool keys_by_channel = false;  // Groups of keys below 16 bits are the 128 tokens of a channel.
  // Whether closed pages of a sequence are expected to differ in width. Changes the number of
  // blocks that are launched, and no bit.
  bool has_unlike_widths = false;

  // Tokens of a sequence that its newest one, of `num_tokens`, does not see: the oldest.
  int32_t Hidden(int64_t num_tokens) const {
    return sliding_window == 0
               ? 0
               : static_cast<int32_t>(std::max<int64_t>(0, num_tokens - sliding_window));
  }
};

// All pointers are of the device.
struct DecodeOperands {
  const std::byte* q = nullptr;  // F16 [B, H, D]
  float* out = nullptr;          // [B, H, D]; rows of sequences without tokens stay.
  // Where its data is not null, rows [H * D] go there, rounded, and not to `out`.
  ProductRows operand;
  const std::byte* arena = nullptr;
  // Page tables, a row of max_pages each: row table_rows[b] is that of sequence b; row b where
  // table_rows is null. Entries of pages that the window hides are not read.
  const PageEntry* entries = nullptr;
  const PageBits* bits = nullptr;
  const int32_t* table_rows = nullptr;  // [B]
  const int32_t* num_tokens = nullptr;  // [B], the sink's included.
  // A pair for each row of the tables, where a sink has a rest: its keys [Hkv, rest_tokens, D] and
  // its values, 256-byte units.
  const uint32_t* sink_rests = nullptr;
  int64_t num_sequences = 0;  // B
  int64_t max_pages = 0;      // Of a table.
};

// Pages of a run, for a sequence with `num_pages`: short runs keep all of the device busy when
// there is little to do, long ones cost less. Four pages are one a warp.
PMKVQ_HOST_DEVICE constexpr int RunPagesLog2(int num_pages) {
  return num_pages < 32 ? 2 : num_pages < 128 ? 3 : num_pages < 512 ? 4 : num_pages < 2048 ? 5 : 6;
}
PMKVQ_HOST_DEVICE constexpr int RunPages(int num_pages) { return 1 << RunPagesLog2(num_pages); }
PMKVQ_HOST_DEVICE constexpr int NumRuns(int num_pages) {
  return (num_pages + RunPages(num_pages) - 1) >> RunPagesLog2(num_pages);
}
// The most runs that a sequence of at most `max_pages` has: longer runs begin with fewer of them.
constexpr int MostRuns(int max_pages) {
  int most = NumRuns(max_pages);
  for (const int bound : {32, 128, 512, 2048}) {
    if (max_pages >= bound) most = std::max(most, NumRuns(bound - 1));
  }
  return most;
}

// Parts of the query heads of a KV head, which read its pages one after the other: at most 8 heads
// attend at a time.
int DecodeParts(const DecodeShape& shape);

// Device memory that a call needs for partial results; contents do not matter.
size_t DecodeScratchBytes(const DecodeShape& shape, int64_t num_sequences, int64_t max_pages);

// Launches on the stream and returns. `scratch` has DecodeScratchBytes. Throws Unsupported for a
// head size or a float type that there is no code for, and in a program without CUDA.
void RunDecodeAttention(const DecodeShape& shape, const DecodeOperands& operands,
                        const DeviceBytes& scratch, Stream& stream);

namespace ref {
// The tokens of one KV head of one sequence as they read, [tokens, D] each.
struct DenseHead {
  std::vector<double> k;
  std::vector<double> v;
  std::vector<int32_t> positions;  // Of the tokens.
};
// Without the tokens that the newest one does not see.
DenseHead ReadHead(const DecodeShape& shape, const DecodeOperands& operands, int64_t sequence,
                   int64_t head);
// One query q [D], of the newest token of `dense`, over those that it sees.
void AttendHead(const DecodeShape& shape, const double* q, const DenseHead& dense, double* out);
// Oracle in double precision, on the host: all pointers are of the host.
void DecodeAttention(const DecodeShape& shape, const DecodeOperands& operands, double* out);
}  // namespace ref

namespace internal {
// Throws Unsupported for a shape that attention on `device` has no code for.
void CheckDecodeShape(const DecodeShape& shape, DeviceId device);
// After the checks. One launch takes 64 sequences.
inline constexpr int64_t kMostDecodeSequences = 64;
void RunDecodeAttentionCuda(const DecodeShape& shape, const DecodeOperands& operands,
                            const DeviceBytes& scratch, Stream& stream);
// Calls run(part) for the sequences of each launch in turn. q has `q_values` F16 a sequence, the
// output `out_values` values.
template <class Run>
void ForEachLaunch(const DecodeOperands& operands, int64_t q_values, int64_t out_values,
                   const Run& run) {
  for (int64_t first = 0; first < operands.num_sequences; first += kMostDecodeSequences) {
    DecodeOperands part = operands;
    part.q += first * q_values * 2;
    if (part.out != nullptr) part.out += first * out_values;
    if (part.operand.data != nullptr) {
      part.operand.data += static_cast<size_t>(first * out_values) * SizeOf(part.operand.type);
    }
    part.num_tokens += first;
    if (part.table_rows != nullptr) {
      part.table_rows += first;
    } else {
      part.entries += first * operands.max_pages;
      part.bits += first * operands.max_pages;
      if (part.sink_rests != nullptr) part.sink_rests += 2 * first;
    }
    part.num_sequences = std::min(kMostDecodeSequences, operands.num_sequences - first);
    run(part);
  }
}
}  // namespace internal

}  // namespace pmkvq
