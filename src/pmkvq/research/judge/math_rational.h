// Exact rational numbers, for comparing answers without any rounding.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>

namespace pmkvq {

// Immutable and cheap to copy (the number is shared). Thread-safe, as every const object is.
// Numerator and denominator have kMaxBits bits each at most; operations return nothing for larger
// results.
class MathRational {
 public:
  // 4,096 decimal digits, the longest answer that is read, and 1000! fit.
  static constexpr int64_t kMaxBits = 16384;

  MathRational() : MathRational(0) {}
  explicit MathRational(int64_t value);
  // Decimal digits only, at least one.
  static std::optional<MathRational> FromDigits(std::string_view digits);
  static std::optional<MathRational> Factorial(int64_t n);
  static std::optional<MathRational> Binomial(int64_t n, int64_t k);  // 0 <= k <= n.

  std::optional<MathRational> Plus(const MathRational& other) const;
  std::optional<MathRational> Times(const MathRational& other) const;
  // By zero: nothing.
  std::optional<MathRational> Over(const MathRational& other) const;
  MathRational Negative() const;
  std::optional<MathRational> Power(int64_t exponent) const;
  // The real root, where it is rational. `degree` > 0.
  std::optional<MathRational> Root(int64_t degree) const;
  MathRational Floor() const;

  int Sign() const;                              // -1, 0 or 1.
  int Compare(const MathRational& other) const;  // Sign of *this - other.
  std::optional<int64_t> ToInteger() const;      // Where it is one that fits.
  // The residue modulo a prime below 2^62; nothing where the prime divides the denominator.
  std::optional<uint64_t> Residue(uint64_t prime) const;

  // The number as GMP's mpq_srcptr, valid as long as this object, for math_ball.cc. GMP's types
  // cannot be named here: its header stays inside .cc files.
  const void* gmp() const;

 private:
  struct Number;
  explicit MathRational(std::shared_ptr<const Number> number) : number_(std::move(number)) {}
  static std::optional<MathRational> Limited(std::shared_ptr<const Number> number);
  std::shared_ptr<const Number> number_;
};

}  // namespace pmkvq
