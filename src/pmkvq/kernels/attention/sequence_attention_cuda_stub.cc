#include "pmkvq/kernels/attention/sequence_attention.h"

namespace pmkvq::internal {
namespace {
constexpr char kWhat[] = "a sequence's attention";
}  // namespace

void WeighSequence(const SequenceWeights&, Stream& stream) {
  ThrowNoBackend(stream.device(), kWhat);
}
void SequenceScoresGrad(const SequenceWeights&, const float*, float*, Stream& stream) {
  ThrowNoBackend(stream.device(), kWhat);
}

}  // namespace pmkvq::internal
