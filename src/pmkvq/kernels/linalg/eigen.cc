#include "pmkvq/kernels/linalg/eigen.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"

// OpenBLAS exports LAPACK, but the development package has no header for it. The last two
// arguments are the lengths that Fortran compilers pass for the two characters.
extern "C" void dsyevd_(const char* jobz, const char* uplo, const int* n, double* a, const int* lda,
                        double* w, double* work, const int* lwork, int* iwork, const int* liwork,
                        int* info, std::size_t jobz_len, std::size_t uplo_len);

namespace pmkvq {

SymmetricEigen EigenOfSymmetric(const double* a, int64_t n) {
  PMKVQ_CHECK(n >= 1 && n <= 4096);
  const auto size = static_cast<size_t>(n);
  SymmetricEigen eigen;
  eigen.values.resize(size);
  eigen.vectors.assign(a, a + n * n);
  if (!std::all_of(eigen.vectors.begin(), eigen.vectors.end(),
                   [](double x) { return std::isfinite(x); })) {
    throw InvalidInput("eigenvectors", "found a value that is not finite, expected finite numbers");
  }
  // Rows of ours are columns of Fortran's: its lower triangle is our upper one, and its
  // eigenvectors, one a column, are our rows.
  const int order = static_cast<int>(n);
  const int work_size = 1 + 6 * order + 2 * order * order;
  const int integer_work_size = 3 + 5 * order;
  std::vector<double> work(static_cast<size_t>(work_size));
  std::vector<int> integer_work(static_cast<size_t>(integer_work_size));
  int info = 0;
  dsyevd_("V", "L", &order, eigen.vectors.data(), &order, eigen.values.data(), work.data(),
          &work_size, integer_work.data(), &integer_work_size, &info, 1, 1);
  PMKVQ_CHECK_MSG(info == 0, "dsyevd did not converge");
  for (size_t i = 0; i < size; ++i) {
    double* vector = eigen.vectors.data() + i * size;
    const double* largest = std::max_element(
        vector, vector + size, [](double x, double y) { return std::abs(x) < std::abs(y); });
    if (*largest < 0) {
      std::transform(vector, vector + size, vector, [](double x) { return -x; });
    }
  }
  return eigen;
}

}  // namespace pmkvq
