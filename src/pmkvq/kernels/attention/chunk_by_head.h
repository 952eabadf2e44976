// Attention of a prompt's chunk with bits that do not depend on the number of heads, for ranks that
// have some of a model's heads each (model/ranks/shard.h).
#pragma once

#include "pmkvq/kernels/attention/chunk_attention.h"

namespace pmkvq {

// RunChunkAttention in products of T rows of one head each: a head's bits depend neither on the
// number of heads nor on how many query heads share a KV head, by which cuBLAS would choose
// otherwise. Slower by the launches.
void RunChunkAttentionByHead(const DecodeShape& shape, const ChunkOperands& operands,
                             const DeviceBytes& scratch, DeviceGemm& gemm, Stream& stream);

}  // namespace pmkvq
