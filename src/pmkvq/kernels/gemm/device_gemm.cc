// Checks of the arguments; products as batches of one.
#include "pmkvq/kernels/gemm/device_gemm.h"

#include <limits>

#include "pmkvq/base/check.h"

namespace pmkvq {
namespace {

constexpr int64_t kMostSize = std::numeric_limits<int32_t>::max();

bool IsSize(int64_t size) { return size > 0 && size <= kMostSize; }

bool IsAligned(const void* p) { return p != nullptr && reinterpret_cast<uintptr_t>(p) % 16 == 0; }

DeviceGemm::Batched AsBatched(DType type, int64_t n, int64_t k, int64_t rows, bool accumulate) {
  PMKVQ_CHECK(IsFloat16Or32(type));
  PMKVQ_CHECK(IsSize(rows) && IsSize(n) && IsSize(k));
  DeviceGemm::Batched batched;
  batched.type = type;
  batched.transpose_b = true;
  batched.batches = 1;
  batched.m = DeviceGemm::PaddedRows(rows);
  batched.n = n;
  batched.k = k;
  batched.lda = k;
  batched.ldb = k;
  batched.ldc = n;
  batched.beta = accumulate ? 1.0f : 0.0f;
  return batched;
}

}  // namespace

int64_t DeviceGemm::PaddedRows(int64_t rows) {
  PMKVQ_CHECK(rows > 0);
  if (rows <= 64) return 64;
  if (rows <= 128) return 128;
  return (rows + 7) / 8 * 8;
}

void DeviceGemm::Prepare(DType type, int64_t n, int64_t k, int64_t rows, bool accumulate,
                         Stream& stream) {
  Warm(AsBatched(type, n, k, rows, accumulate), stream);
}

void DeviceGemm::Multiply(const DeviceProduct& product, Stream& stream) {
  Batched batched = AsBatched(product.type, product.n, product.k, product.rows, product.accumulate);
  batched.a = product.x;
  batched.b = product.w;
  batched.c = reinterpret_cast<std::byte*>(product.y);
  MultiplyBatched(batched, stream);
}

void DeviceGemm::MultiplyBatched(const Batched& product, Stream& stream) {
  PMKVQ_CHECK(stream.device() == device_);
  PMKVQ_CHECK(IsFloat16Or32(product.type));
  PMKVQ_CHECK(product.out_type == DType::kF32 || product.out_type == product.type);
  PMKVQ_CHECK(IsSize(product.batches) && IsSize(product.m) && IsSize(product.n) &&
              IsSize(product.k));
  PMKVQ_CHECK(product.lda >= (product.transpose_a ? product.m : product.k));
  PMKVQ_CHECK(product.ldc >= product.n);
  PMKVQ_CHECK(product.ldb >= (product.transpose_b ? product.k : product.n));
  PMKVQ_CHECK(product.stride_a >= 0 && product.stride_b >= 0);
  PMKVQ_CHECK(product.batches == 1 || product.stride_c > 0);
  PMKVQ_CHECK(IsAligned(product.a) && IsAligned(product.b) && IsAligned(product.c));
  Launch(product, stream);
}

}  // namespace pmkvq
