#include "pmkvq/kernels/attention/decode_attention.h"

namespace pmkvq::internal {

void RunDecodeAttentionCuda(const DecodeShape& /*shape*/, const DecodeOperands& /*operands*/,
                            const DeviceBytes& /*scratch*/, Stream& stream) {
  ThrowNoBackend(stream.device(), "attention");
}

}  // namespace pmkvq::internal
