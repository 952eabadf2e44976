#include "pmkvq/kernels/device_rows/mla_rows.h"

namespace pmkvq {

void MakeLatentRows(const LatentRows& /*op*/, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), "latents");
}

void NormSums(const StackedSums& /*from*/, int64_t /*rows*/, int64_t /*count*/,
              const float* /*weight*/, float /*eps*/, const ProductRows& /*out*/, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), "norms of rows");
}

void MakeLatentQueries(const LatentQueryRows& /*op*/, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), "queries of latents");
}

void PutAbsorbedQueries(const ProductSums& /*sums*/, int64_t /*rows*/, int64_t /*num_heads*/,
                        int64_t /*latent*/, int64_t /*rope*/, float /*scale*/, float* /*q*/,
                        Stream& stream) {
  internal::ThrowNoBackend(stream.device(), "queries of latents");
}

void RoundSums(const ProductSums& /*sums*/, int64_t /*rows*/, int64_t /*width*/,
               const ProductRows& /*out*/, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), "rounding rows");
}

}  // namespace pmkvq
