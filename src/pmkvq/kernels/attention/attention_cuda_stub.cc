#include "pmkvq/kernels/attention/attention_internal.h"

namespace pmkvq::internal {

void RunAttentionCuda(const AttentionPlan& /*plan*/, const AttentionOperands& operands) {
  ThrowNoBackend(operands.device, "attention");
}

}  // namespace pmkvq::internal
