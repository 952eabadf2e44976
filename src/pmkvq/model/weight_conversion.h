// Weights that a source can only decode (GGUF types without kernels) to q8 groups.
#pragma once

#include "pmkvq/io/weights/weight_source.h"
#include "pmkvq/kernels/gemm/weight_q8.h"
#include "pmkvq/tensor/device/exec_context.h"

namespace pmkvq {

// `weight` is a matrix of `source` that decodes; rows of `out` lie in order. Returns false when it
// holds an infinity or NaN; `out` is then of no use. The same for every thread count.
[[nodiscard]] bool DecodeToQ8(const WeightSource& source, const StoredWeight& weight,
                              const ExecContext& exec, Q8Weight& out);

// What DecodeToQ8 adds to a tensor's errors, without keeping its groups.
struct Q8Error {
  bool is_finite = true;  // False: the values below mean nothing.
  float max_error = 0;    // Of a weight.
  float max_weight = 0;   // Largest magnitude.
};
Q8Error MeasureQ8Error(const WeightSource& source, const StoredWeight& weight,
                       const ExecContext& exec);

}  // namespace pmkvq
