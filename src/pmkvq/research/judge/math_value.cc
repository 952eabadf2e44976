#include "pmkvq/research/judge/math_value.h"

#include <functional>

#include "pmkvq/base/random.h"

namespace pmkvq {
namespace {

__extension__ using Wide = unsigned __int128;

// The two largest primes below 2^61.
constexpr std::array<uint64_t, 2> kPrimes = {(uint64_t{1} << 61) - 1, (uint64_t{1} << 61) - 31};

uint64_t MultiplyMod(uint64_t a, uint64_t b, uint64_t prime) {
  return static_cast<uint64_t>(static_cast<Wide>(a) * b % prime);
}
uint64_t PowerMod(uint64_t base, uint64_t exponent, uint64_t prime) {
  uint64_t result = 1;
  for (; exponent > 0; exponent >>= 1) {
    if ((exponent & 1) != 0) result = MultiplyMod(result, base, prime);
    base = MultiplyMod(base, base, prime);
  }
  return result;
}
uint64_t InverseMod(uint64_t a, uint64_t prime) { return PowerMod(a, prime - 2, prime); }

uint64_t Magnitude(int64_t value) {
  return value < 0 ? uint64_t{0} - static_cast<uint64_t>(value) : static_cast<uint64_t>(value);
}

// f(a, b, prime) for both primes.
template <class Residues, class Function>
Residues Combine(const Residues& a, const Residues& b, const Function& f) {
  return {f(a[0], b[0], kPrimes[0]), f(a[1], b[1], kPrimes[1])};
}

}  // namespace

MathValue MathValue::Integer(int64_t value) { return Rational(MathRational(value)); }

MathValue MathValue::Rational(const MathRational& value) {
  MathValue result = MathValue(MathBall(value));
  result.rational_ = value;
  const std::optional<uint64_t> first = value.Residue(kPrimes[0]);
  const std::optional<uint64_t> second = value.Residue(kPrimes[1]);
  result.exact_ = true;
  // No residue where the prime divides the denominator, a chance of 1 in 2^61. The number is then
  // not recognised as equal to another one.
  result.residues_ = {first.value_or(0), second.value_or(0)};
  return result;
}

MathValue MathValue::Exact(const std::optional<MathRational>& rational, const Residues& residues,
                           const MathBall& ball) {
  if (rational) return Rational(*rational);
  MathValue result(ball);
  result.exact_ = true;
  result.residues_ = residues;
  return result;
}

MathValue MathValue::Decimal(std::string_view digits, int64_t exponent10) {
  std::string whole;
  bool after_point = false;
  for (const char digit : digits) {
    if (digit == '.') {
      after_point = true;
      continue;
    }
    whole += digit;
    if (after_point) --exponent10;
  }
  if (whole.empty()) whole = "0";
  const std::optional<MathRational> number = MathRational::FromDigits(whole);
  if (!number) return Undefined();
  const MathValue value = Rational(*number);
  if (exponent10 == 0 || number->Sign() == 0) return value;
  return value * Integer(10).Power(Integer(exponent10));
}

MathValue MathValue::Approximate(const MathBall& value) { return MathValue(value); }

MathValue MathValue::Variable(std::string_view name, int point) {
  uint64_t hash = 1469598103934665603ull;  // FNV-1a, then mixed by StreamSeed.
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211ull;
  const uint64_t bits = StreamSeed(hash, static_cast<uint64_t>(point));
  // Of size [0.5, 2.5): all positive at point 0, all negative at point 1, then mixed, so that |x|
  // and sqrt(x^2) are told from x.
  constexpr int64_t kOne = int64_t{1} << 31;
  const int64_t size = kOne / 2 + static_cast<int64_t>(bits >> 32);
  const bool negative = point == 1 || (point > 1 && (bits & 1) != 0);
  return Integer(negative ? -size : size) / Integer(kOne);
}

MathValue MathValue::operator+(const MathValue& other) const {
  if (!exact_ || !other.exact_) return MathValue(ball_ + other.ball_);
  const std::optional<MathRational> sum =
      rational_ && other.rational_ ? rational_->Plus(*other.rational_) : std::nullopt;
  if (sum) return Rational(*sum);
  const Residues residues = Combine(residues_, other.residues_,
                                    [](uint64_t a, uint64_t b, uint64_t p) { return (a + b) % p; });
  return Exact(sum, residues, ball_ + other.ball_);
}

MathValue MathValue::operator-() const {
  if (!exact_) return MathValue(-ball_);
  if (rational_) return Rational(rational_->Negative());
  const Residues residues = Combine(
      residues_, residues_, [](uint64_t a, uint64_t, uint64_t p) { return a == 0 ? 0 : p - a; });
  return Exact(std::nullopt, residues, -ball_);
}

MathValue MathValue::operator-(const MathValue& other) const { return *this + -other; }

MathValue MathValue::operator*(const MathValue& other) const {
  if (!exact_ || !other.exact_) return MathValue(ball_ * other.ball_);
  const std::optional<MathRational> product =
      rational_ && other.rational_ ? rational_->Times(*other.rational_) : std::nullopt;
  if (product) return Rational(*product);
  return Exact(product, Combine(residues_, other.residues_, MultiplyMod), ball_ * other.ball_);
}

MathValue MathValue::operator/(const MathValue& other) const {
  if (other.IsZero()) return Undefined();
  if (!exact_ || !other.exact_) return MathValue(ball_ / other.ball_);
  const std::optional<MathRational> quotient =
      rational_ && other.rational_ ? rational_->Over(*other.rational_) : std::nullopt;
  if (quotient) return Rational(*quotient);
  if (other.residues_[0] == 0 || other.residues_[1] == 0) return MathValue(ball_ / other.ball_);
  const Residues residues = Combine(
      residues_, other.residues_,
      [](uint64_t a, uint64_t b, uint64_t p) { return MultiplyMod(a, InverseMod(b, p), p); });
  return Exact(quotient, residues, ball_ / other.ball_);
}

MathValue MathValue::Power(const MathValue& exponent) const {
  const std::optional<int64_t> n = exponent.integer();
  if (!n) {
    // (4/9)^{1/2} and 4^{0.5} are rational.
    if (rational_ && exponent.rational_ && rational_->Sign() > 0) {
      const MathValue two_times = exponent + exponent;
      if (two_times.integer()) return Root(2).Power(two_times);
    }
    return MathValue(ball_.Power(exponent.ball_));
  }
  if (*n <= 0 && IsZero()) return Undefined();
  if (!exact_) return MathValue(ball_.IntegerPower(*n));
  const std::optional<MathRational> power = rational_ ? rational_->Power(*n) : std::nullopt;
  if (power) return Rational(*power);
  Residues residues = Combine(residues_, residues_, [&](uint64_t a, uint64_t, uint64_t p) {
    const uint64_t positive = PowerMod(a, Magnitude(*n), p);
    return *n < 0 ? InverseMod(positive, p) : positive;
  });
  return Exact(power, residues, ball_.IntegerPower(*n));
}

MathValue MathValue::Root(int64_t degree) const {
  if (degree == 0) return Undefined();
  if (degree < 0) {
    if (degree == INT64_MIN) return Undefined();
    return Integer(1) / Root(-degree);
  }
  if (rational_) {
    if (const std::optional<MathRational> root = rational_->Root(degree)) return Rational(*root);
  }
  return MathValue(ball_.Root(degree));
}

MathValue MathValue::Absolute() const {
  if (rational_) return rational_->Sign() < 0 ? -*this : *this;
  if (exact_ && ball_.IsReal()) {
    const std::optional<int> sign = Order(ball_, MathBall(MathRational(0)));
    return sign && *sign < 0 ? -*this : *this;
  }
  return MathValue(ball_.Absolute());
}

MathValue MathValue::Floor() const {
  if (rational_) return Rational(rational_->Floor());
  const std::optional<MathRational> floor = ball_.Floor();
  return floor ? Rational(*floor) : Undefined();
}

MathValue MathValue::Apply(MathFunction function) const { return MathValue(ball_.Apply(function)); }

std::optional<int64_t> MathValue::integer() const {
  return rational_ ? rational_->ToInteger() : std::nullopt;
}

bool MathValue::IsZero() const {
  if (rational_) return rational_->Sign() == 0;
  if (exact_ && (residues_[0] != 0 || residues_[1] != 0)) return false;
  return ball_.ContainsZero();
}

bool Agree(const MathValue& a, const MathValue& b) {
  if (a.IsUndefined() || b.IsUndefined()) return false;
  if (a.rational_ && b.rational_) return a.rational_->Compare(*b.rational_) == 0;
  if (a.exact_ && b.exact_) {
    if (a.residues_ != b.residues_) return false;
    // Beyond the range of the approximation the residues alone decide.
    if (a.ball_.IsUndefined() || b.ball_.IsUndefined()) {
      return a.ball_.IsUndefined() && b.ball_.IsUndefined();
    }
  }
  return Overlap(a.ball_, b.ball_);
}

std::optional<int> Order(const MathValue& a, const MathValue& b) {
  if (a.IsUndefined() || b.IsUndefined()) return std::nullopt;
  if (a.rational_ && b.rational_) return a.rational_->Compare(*b.rational_);
  if (Agree(a, b)) return 0;
  return Order(a.ball_, b.ball_);
}

}  // namespace pmkvq
