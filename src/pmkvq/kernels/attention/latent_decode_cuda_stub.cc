#include "pmkvq/kernels/attention/latent_decode.h"

namespace pmkvq::internal {

void RunLatentDecodeCuda(const LatentDecodeShape& /*shape*/, const DecodeOperands& /*operands*/,
                         const DeviceBytes& /*scratch*/, Stream& stream) {
  ThrowNoBackend(stream.device(), "attention over latents");
}

void PackLatentChunk(const LatentDecodeShape& /*shape*/, const ChunkOperands& /*operands*/,
                     int64_t /*rest*/, int64_t /*columns*/, const ChunkMemory& /*memory*/,
                     Stream& stream) {
  ThrowNoBackend(stream.device(), "attention over latents");
}

void GatherLatentPages(const LatentDecodeShape& /*shape*/, const GatherLatents& /*pages*/,
                       Stream& stream) {
  ThrowNoBackend(stream.device(), "attention over latents");
}

}  // namespace pmkvq::internal
