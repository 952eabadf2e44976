// Complex numbers of high precision that know their error.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "pmkvq/research/judge/math_rational.h"

namespace pmkvq {

enum class MathFunction : uint8_t {
  kSin,
  kCos,
  kTan,
  kArcsin,
  kArccos,
  kArctan,
  kSinh,
  kCosh,
  kTanh,
  kExp,
  kLn,
  kLog10,
  kLog2,
};

// A number to kBits binary digits and a bound of its error, which follows every operation: for
// f(x) it is how far f moves when x moves by its own error. A number whose error is above 2^-64
// of max(1, its size) is undefined, and so is everything computed with it.
//
// The bounds are of first order. Comparisons leave them kSlackBits bits of room.
//
// Immutable, cheap to copy. Never throws. Time and memory are bounded for every argument: sine,
// cosine and the like are undefined for arguments beyond 2^4096.
class MathBall {
 public:
  static constexpr int kBits = 1024;

  explicit MathBall(const MathRational& value);
  static MathBall Undefined();
  static MathBall Pi();
  static MathBall E();
  static MathBall I();

  bool IsUndefined() const { return number_ == nullptr; }
  bool IsReal() const;        // The imaginary part is zero.
  bool ContainsZero() const;  // Cannot be told from zero.

  MathBall operator+(const MathBall& other) const;
  MathBall operator-(const MathBall& other) const;
  MathBall operator-() const;
  MathBall operator*(const MathBall& other) const;
  MathBall operator/(const MathBall& other) const;  // Undefined where `other` may be zero.
  MathBall IntegerPower(int64_t exponent) const;
  MathBall Power(const MathBall& exponent) const;
  // Real for a real radicand that has a real root, else the principal one. `degree` > 0.
  MathBall Root(int64_t degree) const;
  MathBall Absolute() const;
  MathBall Apply(MathFunction function) const;
  // The largest integer not above a real number; an integer that the number cannot be told from
  // is the number. Nothing for complex numbers and above 2^kMaxBits.
  std::optional<MathRational> Floor() const;

  // Whether the two may be equal within their errors. A number that may be zero overlaps only with
  // another that may be zero. False for undefined numbers.
  friend bool Overlap(const MathBall& a, const MathBall& b);
  // Sign of a - b for real numbers that can be told apart, 0 where they overlap; nothing for
  // others.
  friend std::optional<int> Order(const MathBall& a, const MathBall& b);

 private:
  struct Number;
  explicit MathBall(std::shared_ptr<const Number> number) : number_(std::move(number)) {}
  static MathBall Checked(std::shared_ptr<Number> number);
  MathBall Shifted() const;
  std::shared_ptr<const Number> number_;  // None: undefined.
};

}  // namespace pmkvq
