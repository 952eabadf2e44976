// Sees the inputs of products: for calibration that rounds weights for what they are multiplied
// with.
#pragma once

#include <cstdint>
#include <span>

#include "pmkvq/kernels/gemm/gemm.h"

namespace pmkvq {

class ProductObserver {
 public:
  virtual ~ProductObserver() = default;
  // Before MatMul or MatMulShared of floats computes: x [num_rows, K] of all projections, K >= 1.
  // On the thread that asked for the product. What it throws comes out of the product.
  virtual void See(const float* x, int64_t num_rows,
                   std::span<const Projection<float>> projections) = 0;
};

// While one lives, products of floats that its thread asks for are shown to `observer`, which must
// outlive it. The innermost one sees them; other threads are not affected.
class ObservedProducts {
 public:
  explicit ObservedProducts(ProductObserver& observer);
  ~ObservedProducts();
  ObservedProducts(const ObservedProducts&) = delete;
  ObservedProducts& operator=(const ObservedProducts&) = delete;

 private:
  ProductObserver* before_;
};

}  // namespace pmkvq
