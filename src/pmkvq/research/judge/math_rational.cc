#include "pmkvq/research/judge/math_rational.h"

#include <gmpxx.h>

#include <limits>
#include <string>
#include <utility>

namespace pmkvq {
namespace {

static_assert(sizeof(long) == sizeof(int64_t), "GMP takes int64_t as long");

size_t Bits(const mpz_class& value) {
  return mpz_sgn(value.get_mpz_t()) == 0 ? 0 : mpz_sizeinbase(value.get_mpz_t(), 2);
}

// The root of `value`, if it is an integer.
std::optional<mpz_class> IntegerRoot(const mpz_class& value, unsigned long degree) {
  if (value < 0 && degree % 2 == 0) return std::nullopt;
  mpz_class root;
  if (mpz_root(root.get_mpz_t(), value.get_mpz_t(), degree) == 0) return std::nullopt;
  return root;
}

uint64_t ResidueOf(const mpz_class& value, uint64_t prime) {
  return mpz_fdiv_ui(value.get_mpz_t(), prime);
}

}  // namespace

struct MathRational::Number {
  mpq_class value;
};

MathRational::MathRational(int64_t value)
    : number_(std::make_shared<const Number>(Number{mpq_class(static_cast<long>(value))})) {}

std::optional<MathRational> MathRational::Limited(std::shared_ptr<const Number> number) {
  const auto limit = static_cast<size_t>(kMaxBits);
  if (Bits(number->value.get_num()) > limit || Bits(number->value.get_den()) > limit) {
    return std::nullopt;
  }
  return MathRational(std::move(number));
}

std::optional<MathRational> MathRational::FromDigits(std::string_view digits) {
  // Ten bits hold three digits.
  if (static_cast<int64_t>(digits.size()) > kMaxBits / 3) return std::nullopt;
  return Limited(
      std::make_shared<const Number>(Number{mpq_class(mpz_class(std::string(digits), 10))}));
}

std::optional<MathRational> MathRational::Factorial(int64_t n) {
  if (n < 0 || n > kMaxBits) return std::nullopt;
  mpz_class product;
  mpz_fac_ui(product.get_mpz_t(), static_cast<unsigned long>(n));
  return Limited(std::make_shared<const Number>(Number{mpq_class(product)}));
}

std::optional<MathRational> MathRational::Binomial(int64_t n, int64_t k) {
  const int64_t steps = std::min(k, n - k);
  if (k < 0 || steps < 0 || steps > kMaxBits) return std::nullopt;
  mpz_class value;
  mpz_bin_uiui(value.get_mpz_t(), static_cast<unsigned long>(n), static_cast<unsigned long>(steps));
  return Limited(std::make_shared<const Number>(Number{mpq_class(value)}));
}

std::optional<MathRational> MathRational::Plus(const MathRational& other) const {
  return Limited(
      std::make_shared<const Number>(Number{mpq_class(number_->value + other.number_->value)}));
}

std::optional<MathRational> MathRational::Times(const MathRational& other) const {
  return Limited(
      std::make_shared<const Number>(Number{mpq_class(number_->value * other.number_->value)}));
}

std::optional<MathRational> MathRational::Over(const MathRational& other) const {
  if (other.Sign() == 0) return std::nullopt;
  return Limited(
      std::make_shared<const Number>(Number{mpq_class(number_->value / other.number_->value)}));
}

MathRational MathRational::Negative() const {
  return MathRational(std::make_shared<const Number>(Number{mpq_class(-number_->value)}));
}

std::optional<MathRational> MathRational::Power(int64_t exponent) const {
  const bool inverse = exponent < 0;
  const uint64_t n =
      inverse ? uint64_t{0} - static_cast<uint64_t>(exponent) : static_cast<uint64_t>(exponent);
  if (Sign() == 0) return inverse || n == 0 ? std::nullopt : std::optional<MathRational>(*this);
  const mpz_class& numerator = number_->value.get_num();
  const mpz_class& denominator = number_->value.get_den();
  const size_t bits = std::max(Bits(numerator), Bits(denominator));
  // (bits - 1) n bits are the least that the power takes; for 1 and -1 these are none.
  if (bits > 1 && n > static_cast<uint64_t>(kMaxBits) / (bits - 1)) return std::nullopt;
  const uint64_t times = bits > 1 ? n : n % 2;
  mpz_class top;
  mpz_class bottom;
  mpz_pow_ui(top.get_mpz_t(), numerator.get_mpz_t(), times);
  mpz_pow_ui(bottom.get_mpz_t(), denominator.get_mpz_t(), times);
  if (inverse) std::swap(top, bottom);
  mpq_class power(top, bottom);
  power.canonicalize();
  return Limited(std::make_shared<const Number>(Number{std::move(power)}));
}

std::optional<MathRational> MathRational::Root(int64_t degree) const {
  const auto n = static_cast<unsigned long>(degree);
  const std::optional<mpz_class> top = IntegerRoot(number_->value.get_num(), n);
  if (!top) return std::nullopt;
  const std::optional<mpz_class> bottom = IntegerRoot(number_->value.get_den(), n);
  if (!bottom) return std::nullopt;
  return MathRational(std::make_shared<const Number>(Number{mpq_class(*top, *bottom)}));
}

MathRational MathRational::Floor() const {
  mpz_class floor;
  mpz_fdiv_q(floor.get_mpz_t(), number_->value.get_num_mpz_t(), number_->value.get_den_mpz_t());
  return MathRational(std::make_shared<const Number>(Number{mpq_class(floor)}));
}

int MathRational::Sign() const { return sgn(number_->value); }

int MathRational::Compare(const MathRational& other) const {
  const int order = cmp(number_->value, other.number_->value);
  return order < 0 ? -1 : order > 0 ? 1 : 0;
}

std::optional<int64_t> MathRational::ToInteger() const {
  const mpz_class& numerator = number_->value.get_num();
  if (number_->value.get_den() != 1 || !numerator.fits_slong_p()) return std::nullopt;
  return numerator.get_si();
}

std::optional<uint64_t> MathRational::Residue(uint64_t prime) const {
  const uint64_t bottom = ResidueOf(number_->value.get_den(), prime);
  if (bottom == 0) return std::nullopt;
  mpz_class inverse;
  const mpz_class modulus(static_cast<unsigned long>(prime));
  mpz_invert(inverse.get_mpz_t(), mpz_class(static_cast<unsigned long>(bottom)).get_mpz_t(),
             modulus.get_mpz_t());
  inverse *= static_cast<unsigned long>(ResidueOf(number_->value.get_num(), prime));
  return ResidueOf(inverse, prime);
}

const void* MathRational::gmp() const { return number_->value.get_mpq_t(); }

}  // namespace pmkvq
