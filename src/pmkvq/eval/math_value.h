// Numbers for comparing formulas: exact for everything rational, approximate for the rest.
#pragma once

#include <complex>
#include <cstdint>
#include <optional>
#include <string_view>

namespace pmkvq {

// A value of a formula at one point (an assignment of its variables).
//
// A rational number of any size is kept as its residue modulo the prime 2^61 - 1, which never
// overflows: two rationals are the same when their residues and their approximations agree (for
// different ones a chance of 2^-61). Variables get fixed pseudo-random residues, so that the same
// holds for rational functions (Schwartz-Zippel). What is not rational (roots, pi, functions, i)
// has only its approximation.
class MathValue {
 public:
  using Complex = std::complex<long double>;

  static MathValue Integer(int64_t value);
  // Digits with at most one point; `exponent10` is that of scientific notation.
  static MathValue Decimal(std::string_view digits, int64_t exponent10);
  static MathValue Approximate(Complex value);
  // The value of a named variable at a point: the same for the same arguments.
  static MathValue Variable(std::string_view name, int point);

  MathValue operator+(const MathValue& other) const;
  MathValue operator-(const MathValue& other) const;
  MathValue operator-() const;
  MathValue operator*(const MathValue& other) const;
  MathValue operator/(const MathValue& other) const;  // By zero: not finite.
  MathValue Power(const MathValue& exponent) const;
  // Real for a real radicand that has a real root, else the principal one.
  MathValue Root(int64_t degree) const;
  MathValue Absolute() const;
  // A function of the approximation.
  MathValue Apply(Complex (*function)(const Complex&)) const;

  // The value as an integer, where it was made from integers without overflow.
  std::optional<int64_t> integer() const { return integer_; }
  bool IsZero() const;
  // Neither exact nor a finite approximation: nothing can be said about it.
  bool IsUndefined() const;

  // Exact where both are rational, otherwise up to 1e-13 of the largest term that went into them
  // (long double has 19 digits). False for undefined values.
  friend bool Agree(const MathValue& a, const MathValue& b);

 private:
  Complex approximation_ = 0;
  long double scale_ = 0;  // Size of the largest term of a sum: what rounding errors come from.
  bool exact_ = false;
  uint64_t residue_ = 0;  // Modulo 2^61 - 1, if exact.
  std::optional<int64_t> integer_;
};

}  // namespace pmkvq
