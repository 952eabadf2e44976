#include "pmkvq/kernels/sequence_rows/sequence_rows.h"

namespace pmkvq {
namespace {
constexpr char kWhat[] = "a sequence's gradient";
}  // namespace

void FindLargest(const std::byte*, DType, int64_t, float*, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}
void ScaleToF16(const std::byte*, DType, int64_t, float, std::byte*, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}
void AddAndNormSequence(const SequenceNorm&, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}
void AddNormGrad(const SequenceNormGrad&, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}
void MakeSequenceHeads(const SequenceHeadShape&, const ScaledSums&, float*, float*, float*,
                       Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}
void SequenceHeadsGrad(const SequenceHeadShape&, const ScaledSums&, const float*, const float*,
                       const float*, const ScaledRows&, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}
void GatherHeads(const SequenceHeadShape&, const GroupedHeads&, const GroupedHeads&,
                 const ScaledRows&, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}
void ScatterHeads(const SequenceHeadShape&, const ScaledSums&, float*, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}
void SiluMulSequence(const ScaledSums&, int64_t, int64_t, const ScaledRows&, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}
void SiluMulSequenceGrad(const ScaledSums&, const ScaledSums&, int64_t, int64_t, const ScaledRows&,
                         Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}
void SequenceCrossEntropy(const ScaledSums&, const int32_t*, int64_t, int64_t, float, double*,
                          const ScaledRows&, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}
void SumSquaresOfRows(const ScaledSums&, int64_t, int64_t, double*, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}
void SumDoubles(const double*, int64_t, int64_t, int64_t, double*, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), kWhat);
}

}  // namespace pmkvq
