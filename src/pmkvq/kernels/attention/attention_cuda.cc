#include "pmkvq/base/error.h"
#include "pmkvq/kernels/attention/attention_internal.h"

namespace pmkvq::internal {

// Views of pages in host vectors are the CPU's way. A store on a device has its page tables there
// and attends by RunDecodeAttention (decode_attention.h).
void RunAttentionCuda(const AttentionPlan& /*plan*/, const AttentionOperands& operands) {
  throw Unsupported(NameOf(operands.device),
                    "attention: found page views on the host, expected page tables on the device");
}

}  // namespace pmkvq::internal
