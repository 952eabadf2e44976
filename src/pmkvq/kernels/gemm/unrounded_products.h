// Products with block formats as calibration needs them: a function with a gradient.
#pragma once

namespace pmkvq {

// While one lives, products of floats that its thread asks for multiply x with the decoded weights,
// for any number of rows, as products of more than kDecodeRows rows do in any case. Without it few
// rows of x are rounded to 8 bits before they meet a block format (gemm.h), which has a gradient of
// zero almost everywhere. Other formats and other threads are not affected. They nest.
class UnroundedProducts {
 public:
  UnroundedProducts();
  ~UnroundedProducts();
  UnroundedProducts(const UnroundedProducts&) = delete;
  UnroundedProducts& operator=(const UnroundedProducts&) = delete;

  // Whether one lives on this thread: for work that is handed to other threads.
  static bool AreAskedFor();
};

}  // namespace pmkvq
