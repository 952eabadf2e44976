// Eigenvalues and eigenvectors of small symmetric matrices, for calibration.
#pragma once

#include <cstdint>
#include <vector>

namespace pmkvq {

struct SymmetricEigen {
  std::vector<double> values;   // [n], ascending
  std::vector<double> vectors;  // [n, n]: row i is the unit eigenvector of values[i].
};

// A = sum_i values[i] * v_i v_i^T for the symmetric matrix a [n, n], n >= 1; only i <= j of a[i, j]
// is read. Signs are ours, not the library's: the entry of largest magnitude (the first of equal
// ones) of each eigenvector is positive. Eigenvectors of equal eigenvalues are any basis.
//
// LAPACK (dsyevd, in OpenBLAS) on one thread: cost O(n^3), residual |A v - value v| a few n times
// 1e-16 of |A|. Throws InvalidInput when `a` holds a value that is not finite.
SymmetricEigen EigenOfSymmetric(const double* a, int64_t n);

}  // namespace pmkvq
