// The layout on the host, and checks of arguments.
#include "pmkvq/kernels/gemm/device_gemm_q8.h"

#include <fmt/format.h>

#include <cstdlib>
#include <cstring>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/float16.h"
#include "pmkvq/base/parallel.h"
#include "pmkvq/kernels/gemm/weight_q8.h"

namespace pmkvq {
namespace {

using device_q8::kCodeBytes;
using device_q8::kCols;
using device_q8::kRows;
using device_q8::kTileBytes;
static_assert(kCols == kQ8Group && kTileBytes == kRows * kQ8GroupBytes);

int64_t TilesAcross(int64_t cols) { return (cols + kCols - 1) / kCols; }

// Of a code and a scale in their tile.
int64_t CodePlace(int64_t row, int64_t col) {
  return 256 * (row / 8) + 8 * (4 * (row % 8) + col / 8) + col % 8;
}
int64_t ScalePlace(int64_t row) { return kCodeBytes + 4 * (row % 8) + 2 * (row / 8); }

void CheckSizes(const char* what, int64_t n, int64_t k, DType type, DeviceId device) {
  PMKVQ_CHECK(n > 0 && k > 0 && n <= INT32_MAX && k <= INT32_MAX);
  PMKVQ_CHECK(IsFloat16Or32(type));
  if (k % 8 == 0) return;
  throw Unsupported(NameOf(device), fmt::format("{}: found {} inputs, expected a multiple of 8; "
                                                "use --device cpu or --weights as-stored",
                                                what, k));
}

bool IsAligned(const void* p) { return p != nullptr && reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace

size_t DeviceQ8Bytes(int64_t rows, int64_t cols) {
  return static_cast<size_t>((rows + kRows - 1) / kRows * TilesAcross(cols)) * kTileBytes;
}

void LayOutQ8(const WeightView& weight, std::byte* out, const ExecContext& exec) {
  PMKVQ_CHECK(weight.format == WeightFormat::kQ8);
  const int64_t row_bytes = RowBytes(WeightFormat::kQ8, weight.cols);
  const int64_t num_groups = row_bytes / kQ8GroupBytes;
  const int64_t strip_bytes = TilesAcross(weight.cols) * kTileBytes;
  ParallelForRanges(
      exec.num_threads, (weight.rows + kRows - 1) / kRows, 4, [&](int64_t begin, int64_t end) {
        std::memset(out + begin * strip_bytes, 0, static_cast<size_t>((end - begin) * strip_bytes));
        for (int64_t row = begin * kRows; row < std::min(end * kRows, weight.rows); ++row) {
          const std::byte* group = weight.data + weight.StoredRow(row) * row_bytes;
          for (int64_t g = 0; g < num_groups; ++g, group += kQ8GroupBytes) {
            std::byte* tile = out + row / kRows * strip_bytes + g * kTileBytes;
            const int64_t in_tile = row % kRows;
            std::memcpy(tile + ScalePlace(in_tile), group + kQ8Group, 2);
            for (int64_t i = 0; i < kQ8Group; ++i) {
              const int code = static_cast<int8_t>(group[i]);
              tile[CodePlace(in_tile, i)] =
                  static_cast<std::byte>(std::abs(code) | (code < 0 ? 0x80 : 0));
            }
          }
        }
      });
}

void MultiplyQ8(const DeviceQ8Product& product, Stream& stream) {
  CheckSizes("product with q8 weights", product.n, product.k, product.type, stream.device());
  PMKVQ_CHECK(product.rows > 0 && product.rows <= kDecodeRows);
  PMKVQ_CHECK(IsAligned(product.x) && IsAligned(product.w) && product.y != nullptr);
  internal::MultiplyQ8Cuda(product, stream);
}

void ExpandQ8OnDevice(const std::byte* w, int64_t n, int64_t k, DType type, std::byte* out,
                      Stream& stream) {
  CheckSizes("expanding q8 weights", n, k, type, stream.device());
  PMKVQ_CHECK(IsAligned(w) && IsAligned(out));
  internal::ExpandQ8Cuda(w, n, k, type, out, stream);
}

namespace internal {

float DeviceQ8At(const std::byte* w, int64_t k, int64_t row, int64_t col) {
  const std::byte* tile = w + (row / kRows * TilesAcross(k) + col / kCols) * kTileBytes;
  const auto code = static_cast<int>(tile[CodePlace(row % kRows, col % kCols)]);
  BF16 scale;
  std::memcpy(&scale, tile + ScalePlace(row % kRows), sizeof(scale));
  return static_cast<float>(code < 0x80 ? code : 0x80 - code) * ToFloat(scale);
}

}  // namespace internal
}  // namespace pmkvq
