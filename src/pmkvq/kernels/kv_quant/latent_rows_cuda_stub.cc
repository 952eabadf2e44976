#include "pmkvq/kernels/kv_quant/latent_rows.h"

namespace pmkvq {

void AppendLatents(const LatentWidths& /*widths*/, const AppendOperands& /*operands*/,
                   Stream& stream) {
  internal::ThrowNoBackend(stream.device(), "storing latents");
}

void TurnLatents(const LatentTurn& /*turn*/, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), "scaling latents");
}

}  // namespace pmkvq
