// Many tokens of one sequence to and from pages in a CUDA device's memory, in fragment order
// (fragment_layout.h): what a prompt's chunk stores, and what its attention reads of the pages.
//
// All functions launch on the stream and return. Offsets are in units of 256 bytes from the
// arena's beginning. F16 and BF16.
//
// Threads: one caller per stream. Errors: a wrong shape is a caller's bug; Unsupported in a program
// without CUDA; DeviceError.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "pmkvq/kernels/kv_quant/page_entry.h"
#include "pmkvq/tensor/device/stream.h"
#include "pmkvq/tensor/dtype.h"

namespace pmkvq {

// Adjacent tokens that lie in one page of 16 bits, or in a sink's rest.
struct RowPiece {
  static constexpr uint32_t kNone = 0xffffffffu;  // This side is not stored.
  uint32_t k = kNone;
  uint32_t v = kNone;
  int32_t first_row = 0;  // Of the rows given, the piece's first.
  int32_t num_rows = 0;
  int32_t index = 0;     // Of the first token in the page, or in the rest.
  int32_t capacity = 0;  // 0: a page. Else a sink's rest, row-major [Hkv, capacity, D].
};

// Stores k, v [rows, Hkv, D], rounded to the float type. A piece at the beginning of a page zeroes
// the page's other values, since attention multiplies values behind the last token by 0.
struct StoreRowsOperands {
  const float* k = nullptr;  // Of the device.
  const float* v = nullptr;
  std::byte* arena = nullptr;
};
void StoreRows(int64_t num_kv_heads, int64_t head_dim, DType float_type,
               std::span<const RowPiece> pieces, const StoreRowsOperands& operands, Stream& stream);

// Pages as rows: k, v [Hkv, 128 num_pages, D], F16 of pages of F16, float of BF16. A code becomes
// code * step + min; F16 rounded, and held at +-65504. Rows from `num_tokens` on are 0.
struct GatherPagesOperands {
  const std::byte* arena = nullptr;
  const PageEntry* entries = nullptr;  // [num_pages]
  const PageBits* bits = nullptr;
  int64_t num_pages = 0;
  int64_t num_tokens = 0;
  std::byte* k = nullptr;
  std::byte* v = nullptr;
  bool keys_by_channel = false;  // Of pages below 16 bits.
};
void GatherPages(int64_t num_kv_heads, int64_t head_dim, DType float_type,
                 const GatherPagesOperands& operands, Stream& stream);

// Changes entries of page tables.
struct PagePatch {
  PageEntry entry;
  uint32_t index = 0;
  PageBits bits;
};
void PatchPageTables(const PagePatch* patches, int64_t count, PageEntry* entries, PageBits* bits,
                     Stream& stream);

}  // namespace pmkvq
