#include "pmkvq/kernels/gemm/device_gemm_few.h"

namespace pmkvq {

void MultiplyFewRows(const FewRowsProduct&, Stream& stream) {
  internal::ThrowNoBackend(stream.device(), "a product of few rows");
}

}  // namespace pmkvq
