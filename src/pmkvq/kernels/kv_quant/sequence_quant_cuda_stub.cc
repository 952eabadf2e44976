#include "pmkvq/kernels/kv_quant/sequence_quant.h"

namespace pmkvq {
namespace {
constexpr char kWhat[] = "calibration";
}  // namespace

void FindLargestKeys(const float*, int64_t, int64_t, int64_t, float*, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}
void MeasureDamage(int64_t, const float*, const float*, int64_t, double*, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}
void QuantizeScaled(const ScaledQuantization&, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}

}  // namespace pmkvq
