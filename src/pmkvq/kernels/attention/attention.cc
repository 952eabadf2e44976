#include "pmkvq/kernels/attention/attention.h"

namespace pmkvq {

void Attend(const AttentionShape& shape, std::span<const AttentionSequence> sequences,
            int /*num_threads*/, AttentionScratch& /*scratch*/, AttentionMode /*mode*/) {
  ref::Attend(shape, sequences);
}

}  // namespace pmkvq
