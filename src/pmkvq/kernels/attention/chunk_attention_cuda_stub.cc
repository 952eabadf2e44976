#include "pmkvq/kernels/attention/chunk_attention.h"

namespace pmkvq::internal {
namespace {
constexpr char kWhat[] = "attention";
}  // namespace

void PackChunk(const DecodeShape&, const ChunkOperands&, int64_t, int64_t, const ChunkMemory&,
               Stream& stream) {
  ThrowNoBackend(stream.device(), kWhat);
}
void WeighChunk(const DecodeShape&, const ChunkOperands&, const ChunkSlice&, const ChunkMemory&,
                Stream& stream) {
  ThrowNoBackend(stream.device(), kWhat);
}
void FinishChunk(const DecodeShape&, const ChunkOperands&, const ChunkMemory&, Stream& stream) {
  ThrowNoBackend(stream.device(), kWhat);
}

}  // namespace pmkvq::internal
