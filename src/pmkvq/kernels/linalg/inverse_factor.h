// The triangular factor of an inverse, for rounding weights with what they are multiplied with.
#pragma once

#include <cstdint>

namespace pmkvq {

// Replaces the symmetric matrix a [n, n], n >= 1, of which only i <= j of a[i, j] is read, by the
// upper triangular U with U^T U = a^-1 and a positive diagonal. a[i, j] with i > j is then zero.
// Returns false when `a` is not positive definite, or holds a value that is not finite; `a` is then
// of no use.
//
// Cost about 2/3 n^3 multiplications by LAPACK (dpotrf, dtrtri, in OpenBLAS) on one thread.
[[nodiscard]] bool FactorOfInverse(double* a, int64_t n);

}  // namespace pmkvq
