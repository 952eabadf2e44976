// Products of matrices on a device, by the vendor's library (cuBLASLt on CUDA).
//
// Everything is row-major. Sums are kept in float, also of 16-bit operands; products of F32
// operands are those of float, no shorter type in between (no TF32).
//
// The algorithm of a product depends on its types, sizes and strides only: it is chosen when such a
// product comes first, and kept. Algorithms that add up in an order that may change are excluded.
// So a call gives the same bits each time. Rows are padded (PaddedRows), so that all products of up
// to 64 rows are one and the same product: a row's bits depend neither on the number of rows nor on
// the others. Beyond, bits may depend on the padded number of rows. They may depend on the device
// and on the library's version, too.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#include "pmkvq/tensor/device/device.h"
#include "pmkvq/tensor/device/stream.h"
#include "pmkvq/tensor/dtype.h"

namespace pmkvq {

// y = x W^T, or y += x W^T. All of the device, begin at multiples of 16 bytes, do not overlap.
struct DeviceProduct {
  DType type = DType::kBF16;     // Of x and W: kF16, kBF16 or kF32.
  const std::byte* x = nullptr;  // [padded rows, K]
  const std::byte* w = nullptr;  // [N, K]
  float* y = nullptr;            // [padded rows, N]
  int64_t rows = 0;
  int64_t n = 0;
  int64_t k = 0;
  bool accumulate = false;
};

// C[b] = alpha op(A[b]) op(B[b]) + beta C[b] for b = 0 .. batches - 1: C [m, n], A [m, k], or [k,
// m] where it is transposed, B [n, k] where it is transposed, else [k, n]. Leading dimensions, from
// one row to the next, and strides, from one matrix of the batch to the next, are in elements. A
// stride of 0 for A or B: all of the batch share it. Begin at multiples of 16 bytes. Where beta is
// 0, C is not read.
struct DeviceBatchedProduct {
  DType type = DType::kBF16;     // Of A and B: kF16, kBF16 or kF32.
  DType out_type = DType::kF32;  // Of C: kF32, or `type`.
  bool transpose_a = false;
  bool transpose_b = false;
  bool allow_tf32 = false;  // F32 operands may be rounded to 11 significant bits: far faster.
  int64_t batches = 0;
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  const std::byte* a = nullptr;
  const std::byte* b = nullptr;
  std::byte* c = nullptr;
  int64_t lda = 0;
  int64_t ldb = 0;
  int64_t ldc = 0;
  int64_t stride_a = 0;
  int64_t stride_b = 0;
  int64_t stride_c = 0;
  float alpha = 1.0f;
  float beta = 0.0f;
};

// Products of an object share its workspace (32 MiB of the device): they must follow each other, on
// one stream, or on several that wait for each other.
// Threads: one call at a time.
class DeviceGemm {
 public:
  using Batched = DeviceBatchedProduct;

  // `choice` is for measuring: of the library's algorithms for a product, the likely fastest first,
  // the place of the one that is taken, or the last one's. Without it a rule chooses, by what the
  // library says about the first few.
  // Throws Unsupported in a program without code for the device, DeviceError when the device fails.
  explicit DeviceGemm(DeviceId device, std::optional<int> choice = std::nullopt);
  ~DeviceGemm();
  DeviceGemm(const DeviceGemm&) = delete;
  DeviceGemm& operator=(const DeviceGemm&) = delete;

  static constexpr int kMostChoices = 16;

  // Rows that a product of `rows` computes, and that x and y have memory for: 64, 128, then
  // multiples of 8. Rows of x from `rows` on may hold anything; those of y are overwritten.
  static int64_t PaddedRows(int64_t rows);

  // Chooses the algorithm of such a product, and runs it once on memory that is given back, where
  // the device has so much free, so that its code is loaded. Waits for the stream, on which this
  // object's products follow each other. Does nothing when called again for the same.
  // Throws Unsupported where the library has no algorithm: for F16 and BF16, N and K should be
  // multiples of 8.
  void Prepare(DType type, int64_t n, int64_t k, int64_t rows, bool accumulate, Stream& stream);

  // The same of such a product; where its matrices lie does not matter.
  void PrepareBatched(const Batched& product, Stream& stream) { Warm(product, stream); }

  // Launches on the stream and returns. May be captured (CapturedWork), best after Prepare. Throws
  // as Prepare does, where that was not called.
  void Multiply(const DeviceProduct& product, Stream& stream);
  void MultiplyBatched(const Batched& product, Stream& stream);

 private:
  struct State;

  // Of a backend. The arguments are checked.
  void Launch(const Batched& product, Stream& stream);
  void Warm(const Batched& product, Stream& stream);

  DeviceId device_;
  std::unique_ptr<State> state_;
};

}  // namespace pmkvq
