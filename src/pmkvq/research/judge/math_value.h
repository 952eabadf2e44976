// Numbers for comparing formulas: exact for everything rational, known to an error for the rest.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

#include "pmkvq/research/judge/math_ball.h"
#include "pmkvq/research/judge/math_rational.h"

namespace pmkvq {

// A value of a formula at one point (an assignment of its variables).
//
// A rational number is kept exactly up to MathRational::kMaxBits. A larger one is kept as its
// residues modulo two primes near 2^61 and its approximation: two of them are the same when all
// of these agree (for different ones a chance of 2^-122). Variables get fixed pseudo-random
// rational values, so that the same holds for rational functions (Schwartz-Zippel). What is not
// rational (roots, pi, functions, i) is a MathBall.
class MathValue {
 public:
  static MathValue Integer(int64_t value);
  static MathValue Rational(const MathRational& value);
  // Digits with at most one point; `exponent10` is that of scientific notation.
  static MathValue Decimal(std::string_view digits, int64_t exponent10);
  static MathValue Approximate(const MathBall& value);
  // The value of a named variable at a point: the same for the same arguments.
  static MathValue Variable(std::string_view name, int point);

  MathValue operator+(const MathValue& other) const;
  MathValue operator-(const MathValue& other) const;
  MathValue operator-() const;
  MathValue operator*(const MathValue& other) const;
  MathValue operator/(const MathValue& other) const;  // By zero: undefined.
  MathValue Power(const MathValue& exponent) const;   // 0^0 is undefined, too.
  // Real for a real radicand that has a real root, else the principal one.
  MathValue Root(int64_t degree) const;
  MathValue Absolute() const;
  MathValue Floor() const;  // Undefined where it is not known.
  MathValue Apply(MathFunction function) const;

  // The value where it is a rational number that is kept exactly, and where it is an integer.
  const std::optional<MathRational>& rational() const { return rational_; }
  std::optional<int64_t> integer() const;
  bool IsZero() const;
  // Neither exact nor a known approximation: nothing can be said about it.
  bool IsUndefined() const { return !exact_ && ball_.IsUndefined(); }

  // Exact where both are rational, otherwise whether the two cannot be told apart (MathBall).
  // False for undefined values.
  friend bool Agree(const MathValue& a, const MathValue& b);
  // Sign of a - b for real numbers; 0 where they agree; nothing where it is not known.
  friend std::optional<int> Order(const MathValue& a, const MathValue& b);

 private:
  using Residues = std::array<uint64_t, 2>;

  explicit MathValue(const MathBall& ball) : ball_(ball) {}
  static MathValue Undefined() { return MathValue(MathBall::Undefined()); }
  static MathValue Exact(const std::optional<MathRational>& rational, const Residues& residues,
                         const MathBall& ball);

  MathBall ball_;
  bool exact_ = false;
  std::optional<MathRational> rational_;  // Only if exact.
  Residues residues_ = {};                // If exact.
};

}  // namespace pmkvq
