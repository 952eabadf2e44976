// Tokens of latent attention (kv_geometry.h) to pages in a CUDA device's memory, in fragment order
// with tokens as rows, and what key scales and rotation do to them on the way.
//
// All functions launch on the stream and return. Floats of pages are F16. All pointers are of the
// device. Threads: one caller per stream. Errors: a wrong shape is a caller's bug; Unsupported in a
// program without CUDA; DeviceError.
#pragma once

#include <cstdint>

#include "pmkvq/kernels/kv_quant/page_moves.h"
#include "pmkvq/tensor/device/stream.h"

namespace pmkvq {

struct LatentWidths {
  int64_t latent = 0;  // r, a multiple of 128.
  int64_t rope = 0;    // dr: fragment::IsRowWidth.
};

// AppendTokens with q [B, H, r + dr], c as k [B, r], k_r as v [B, dr], and q_rounded [B, H, r +
// dr]. A sink's rest has c as [r / 128, capacity, 128]. No page is zeroed.
void AppendLatents(const LatentWidths& widths, const AppendOperands& operands, Stream& stream);

// Of each row x [width]: times factors [width], where given; the first `rotated` values times the
// normalised Walsh-Hadamard matrix, where not 0: a power of two. In this order, or the other way
// round.
struct LatentTurn {
  float* x = nullptr;
  int64_t rows = 0;
  int64_t width = 0;  // At most 1,024.
  const float* factors = nullptr;
  int64_t rotated = 0;
  bool factors_last = false;
};
void TurnLatents(const LatentTurn& turn, Stream& stream);

}  // namespace pmkvq
