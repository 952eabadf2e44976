#include "pmkvq/kernels/linalg/inverse_factor.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/gemm/blas_threads.h"

// OpenBLAS exports LAPACK, but the development package has no header for it. The last arguments are
// the lengths that Fortran compilers pass for characters.
extern "C" {
void dpotrf_(const char* uplo, const int* n, double* a, const int* lda, int* info,
             std::size_t uplo_len);
void dtrtri_(const char* uplo, const char* diag, const int* n, double* a, const int* lda, int* info,
             std::size_t uplo_len, std::size_t diag_len);
}

namespace pmkvq {

// With J the permutation that reverses rows, J a J = L L^T gives a = R R^T for R = J L J, which is
// upper triangular. So U = R^-1 = J L^-1 J. Reversing all n^2 values is J . J. Rows of ours are
// columns of Fortran's: its upper triangle is our lower one.
bool FactorOfInverse(double* a, int64_t n) {
  PMKVQ_CHECK(n >= 1 && n <= (int64_t{1} << 20));
  for (int64_t i = 0; i < n; ++i) {
    if (!std::all_of(a + i * n + i, a + (i + 1) * n, [](double x) { return std::isfinite(x); })) {
      return false;
    }
  }
  const internal::OneBlasThread one_thread;
  const int order = static_cast<int>(n);
  int info = 0;
  std::reverse(a, a + n * n);
  dpotrf_("U", &order, a, &order, &info, 1);
  if (info != 0) return false;
  dtrtri_("U", "N", &order, a, &order, &info, 1, 1);
  if (info != 0) return false;
  std::reverse(a, a + n * n);
  for (int64_t i = 1; i < n; ++i) std::fill_n(a + i * n, i, 0.0);
  return true;
}

}  // namespace pmkvq
