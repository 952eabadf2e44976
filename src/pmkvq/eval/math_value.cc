#include "pmkvq/eval/math_value.h"

#include <algorithm>
#include <cmath>

#include "pmkvq/base/random.h"

namespace pmkvq {
namespace {

__extension__ using Wide = unsigned __int128;

constexpr uint64_t kPrime = (uint64_t{1} << 61) - 1;
constexpr long double kTolerance = 1e-13L;

uint64_t AddMod(uint64_t a, uint64_t b) { return (a + b) % kPrime; }
uint64_t NegateMod(uint64_t a) { return a == 0 ? 0 : kPrime - a; }
uint64_t MultiplyMod(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<Wide>(a) * b % kPrime);
}
uint64_t PowerMod(uint64_t base, uint64_t exponent) {
  uint64_t result = 1;
  for (; exponent > 0; exponent >>= 1) {
    if ((exponent & 1) != 0) result = MultiplyMod(result, base);
    base = MultiplyMod(base, base);
  }
  return result;
}
uint64_t InverseMod(uint64_t a) { return PowerMod(a, kPrime - 2); }

uint64_t Magnitude(int64_t value) {
  return value < 0 ? uint64_t{0} - static_cast<uint64_t>(value) : static_cast<uint64_t>(value);
}

bool IsFinite(const MathValue::Complex& value) {
  return std::isfinite(value.real()) && std::isfinite(value.imag());
}

// A negative zero behind the number would pick the other side of a branch cut: sqrt(-4) is 2i.
MathValue::Complex OnBranch(const MathValue::Complex& value) {
  return value.imag() == 0 ? MathValue::Complex(value.real()) : value;
}

// By squaring: the pow of <complex> goes through a logarithm and loses digits.
MathValue::Complex IntegerPower(MathValue::Complex base, int64_t exponent) {
  if (base.imag() == 0) return std::pow(base.real(), static_cast<long double>(exponent));
  MathValue::Complex result = 1;
  for (uint64_t n = Magnitude(exponent); n > 0; n >>= 1) {
    if ((n & 1) != 0) result *= base;
    base *= base;
  }
  return exponent < 0 ? MathValue::Complex(1) / result : result;
}

// How much larger the rounding errors of `value` are than those of a number of its size.
long double Amplification(long double scale, const MathValue::Complex& value) {
  const long double size = std::abs(value);
  return size > 0 ? std::max(1.0L, scale / size) : 1.0L;
}

}  // namespace

MathValue MathValue::Integer(int64_t value) {
  MathValue result;
  result.approximation_ = static_cast<long double>(value);
  result.scale_ = std::abs(result.approximation_);
  result.exact_ = true;
  result.residue_ = Magnitude(value) % kPrime;
  if (value < 0) result.residue_ = NegateMod(result.residue_);
  result.integer_ = value;
  return result;
}

MathValue MathValue::Decimal(std::string_view digits, int64_t exponent10) {
  MathValue result = Integer(0);
  const MathValue ten = Integer(10);
  bool after_point = false;
  for (const char digit : digits) {
    if (digit == '.') {
      after_point = true;
      continue;
    }
    result = result * ten + Integer(digit - '0');
    if (after_point) --exponent10;
  }
  return exponent10 == 0 ? result : result * ten.Power(Integer(exponent10));
}

MathValue MathValue::Approximate(Complex value) {
  MathValue result;
  result.approximation_ = value;
  result.scale_ = std::abs(value);
  return result;
}

MathValue MathValue::Variable(std::string_view name, int point) {
  uint64_t hash = 1469598103934665603ull;  // FNV-1a, then mixed by StreamSeed.
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211ull;
  const uint64_t bits = StreamSeed(hash, static_cast<uint64_t>(point));
  MathValue result;
  // Of size [0.5, 2.5): all positive at point 0, all negative at point 1, then mixed, so that |x|
  // and sqrt(x^2) are told from x.
  const long double size = 0.5L + static_cast<long double>(bits >> 11) * 0x1p-52L;
  const bool negative = point == 1 || (point > 1 && (bits & 1) != 0);
  result.approximation_ = negative ? -size : size;
  result.scale_ = size;
  result.exact_ = true;
  result.residue_ = bits % kPrime;
  return result;
}

MathValue MathValue::operator+(const MathValue& other) const {
  MathValue result;
  result.approximation_ = approximation_ + other.approximation_;
  result.scale_ = std::max(scale_, other.scale_);
  result.exact_ = exact_ && other.exact_;
  if (result.exact_) result.residue_ = AddMod(residue_, other.residue_);
  int64_t sum = 0;
  if (integer_ && other.integer_ && !__builtin_add_overflow(*integer_, *other.integer_, &sum)) {
    result.integer_ = sum;
  }
  return result;
}

MathValue MathValue::operator-() const {
  MathValue result = *this;
  result.approximation_ = -approximation_;
  if (exact_) result.residue_ = NegateMod(residue_);
  result.integer_.reset();
  if (integer_ && *integer_ != INT64_MIN) result.integer_ = -*integer_;
  return result;
}

MathValue MathValue::operator-(const MathValue& other) const { return *this + -other; }

MathValue MathValue::operator*(const MathValue& other) const {
  MathValue result;
  result.approximation_ = approximation_ * other.approximation_;
  result.scale_ = scale_ * other.scale_;
  result.exact_ = exact_ && other.exact_;
  if (result.exact_) result.residue_ = MultiplyMod(residue_, other.residue_);
  int64_t product = 0;
  if (integer_ && other.integer_ && !__builtin_mul_overflow(*integer_, *other.integer_, &product)) {
    result.integer_ = product;
  }
  return result;
}

MathValue MathValue::operator/(const MathValue& other) const {
  MathValue result;
  if (other.IsZero()) return Approximate(std::nanl(""));
  result.approximation_ = approximation_ / other.approximation_;
  result.scale_ =
      scale_ / std::abs(other.approximation_) * Amplification(other.scale_, other.approximation_);
  result.exact_ = exact_ && other.exact_ && other.residue_ != 0;
  if (result.exact_) result.residue_ = MultiplyMod(residue_, InverseMod(other.residue_));
  if (integer_ && other.integer_ && *other.integer_ != -1 && *integer_ % *other.integer_ == 0) {
    result.integer_ = *integer_ / *other.integer_;
  }
  return result;
}

MathValue MathValue::Power(const MathValue& exponent) const {
  MathValue result;
  const long double amplification = Amplification(scale_, approximation_);
  if (!exponent.integer_) {
    const Complex power = exponent.approximation_;
    const bool real = approximation_.imag() == 0 && power.imag() == 0 && approximation_.real() >= 0;
    result.approximation_ = real ? Complex(std::pow(approximation_.real(), power.real()))
                                 : std::pow(OnBranch(approximation_), power);
    result.scale_ =
        std::abs(result.approximation_) * amplification * std::max(1.0L, std::abs(power));
    return result;
  }
  const int64_t n = *exponent.integer_;
  if (n <= 0 && IsZero()) return Approximate(std::nanl(""));  // 0^0 as well.
  result.approximation_ = IntegerPower(approximation_, n);
  result.scale_ = std::abs(result.approximation_) * amplification *
                  std::max(1.0L, static_cast<long double>(Magnitude(n)));
  result.exact_ = exact_ && (n >= 0 || residue_ != 0);
  if (result.exact_) {
    result.residue_ = PowerMod(residue_, Magnitude(n));
    if (n < 0) result.residue_ = InverseMod(result.residue_);
  }
  if (integer_ && n >= 0) {
    const long double size = std::abs(result.approximation_);
    if (size < 0x1p62L) result.integer_ = std::llround(result.approximation_.real());
  }
  return result;
}

MathValue MathValue::Root(int64_t degree) const {
  if (degree == 0) return Approximate(std::nanl(""));
  const auto n = static_cast<long double>(degree);
  MathValue result;
  const long double real = approximation_.real();
  const bool is_real = approximation_.imag() == 0;
  if (degree == 2) {
    result.approximation_ = std::sqrt(OnBranch(approximation_));
  } else if (is_real && (real >= 0 || degree % 2 != 0)) {
    result.approximation_ = std::copysign(std::pow(std::abs(real), 1 / n), real);
  } else {
    result.approximation_ = std::pow(OnBranch(approximation_), 1 / n);
  }
  result.scale_ = std::abs(result.approximation_) * Amplification(scale_, approximation_);
  return result;
}

MathValue MathValue::Absolute() const {
  if (approximation_.imag() == 0) return approximation_.real() < 0 ? -*this : *this;
  MathValue result = Approximate(std::abs(approximation_));
  result.scale_ = scale_;
  return result;
}

MathValue MathValue::Apply(Complex (*function)(const Complex&)) const {
  MathValue result = Approximate(function(OnBranch(approximation_)));
  // Zeros of functions lie at inexact arguments, such as sin(pi).
  result.scale_ = std::max({std::abs(result.approximation_), 1.0L, scale_});
  return result;
}

bool MathValue::IsZero() const {
  if (exact_ && residue_ != 0) return false;
  if (integer_) return *integer_ == 0;
  return std::abs(approximation_) <= kTolerance * scale_;
}

bool MathValue::IsUndefined() const { return !exact_ && !IsFinite(approximation_); }

bool Agree(const MathValue& a, const MathValue& b) {
  if (a.IsUndefined() || b.IsUndefined()) return false;
  if (a.exact_ && b.exact_) {
    if (a.residue_ != b.residue_) return false;
    // Beyond the range of the approximation the residues alone decide.
    if (!IsFinite(a.approximation_) || !IsFinite(b.approximation_)) return true;
  }
  if (!IsFinite(a.approximation_) || !IsFinite(b.approximation_)) return false;
  const long double error = std::abs(a.approximation_ - b.approximation_);
  return error <= kTolerance * std::max(a.scale_, b.scale_);
}

}  // namespace pmkvq
