#include "pmkvq/kernels/device_rows/device_rows.h"

namespace pmkvq {
namespace {
constexpr char kWhat[] = "a forward pass";
}  // namespace

void EmbedRows(const std::byte*, DType, const int32_t*, int64_t, int64_t, float*, Stream& stream,
               float, const Rotations&) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}
void AddAndNormRows(const NormRows&, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}
void MakeRotations(const Rotations&, int64_t, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}
void MakeHeadRows(const HeadRows&, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}
void RoundRows(const float*, int64_t, int64_t, const ProductRows&, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}
void SiluMulRows(const ProductSums&, int64_t, int64_t, const ProductRows&, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}
void GeluMulRows(const ProductSums&, int64_t, int64_t, const ProductRows&, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}
void AddPartsOfRows(const ProductSums&, int64_t, int64_t, float*, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}
void HadamardRows(float*, int64_t, int64_t, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}

}  // namespace pmkvq
