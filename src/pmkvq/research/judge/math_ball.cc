#include "pmkvq/research/judge/math_ball.h"

#include <mpc.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace pmkvq {
namespace {

// Errors are kept as their base-2 logarithms: they have no smallest and no largest value.
constexpr double kExact = -std::numeric_limits<double>::infinity();
constexpr double kSlackBits = 8;
constexpr double kKnownBits = 64;
// Largest exponent of an argument whose period has to be taken off.
constexpr mpfr_exp_t kMaxExponent = 4096;

// log2(2^a + 2^b).
double AddErrors(double a, double b) {
  const double large = std::max(a, b);
  const double small = std::min(a, b);
  if (small == kExact) return large;
  return large + std::log2(1 + std::exp2(small - large));
}

// MPFR keeps constants per thread and wants them to be freed before the thread ends.
struct ConstantsOfThread {
  ~ConstantsOfThread() { mpfr_free_cache(); }
};

class Complex {
 public:
  Complex() {
    static thread_local const ConstantsOfThread constants;
    mpc_init2(value_, MathBall::kBits);
    mpc_set_ui(value_, 0, MPC_RNDNN);
  }
  Complex(const Complex& other) : Complex() { mpc_set(value_, other.value_, MPC_RNDNN); }
  Complex& operator=(const Complex&) = delete;
  ~Complex() { mpc_clear(value_); }

  mpc_ptr get() { return value_; }
  mpc_srcptr get() const { return value_; }
  mpfr_ptr real() { return mpc_realref(value_); }
  mpfr_srcptr real() const { return mpc_realref(value_); }
  mpfr_ptr imaginary() { return mpc_imagref(value_); }
  mpfr_srcptr imaginary() const { return mpc_imagref(value_); }

  bool IsReal() const { return mpfr_zero_p(imaginary()) != 0; }
  bool IsFinite() const { return mpfr_number_p(real()) != 0 && mpfr_number_p(imaginary()) != 0; }
  bool IsZero() const { return mpfr_zero_p(real()) != 0 && IsReal(); }

  // log2 of an upper bound of the absolute value; half of it, or more, is reached.
  double Size() const { return std::max(PartSize(real()), PartSize(imaginary())) + 0.5; }
  double LeastSize() const { return Size() - 1.5; }

  static double PartSize(mpfr_srcptr part) {
    return mpfr_zero_p(part) != 0 ? kExact : static_cast<double>(mpfr_get_exp(part));
  }

 private:
  mpc_t value_;
};

bool WithinExponents(const Complex& value) {
  for (const mpfr_srcptr part : {value.real(), value.imaginary()}) {
    if (mpfr_zero_p(part) == 0 && std::abs(mpfr_get_exp(part)) > kMaxExponent) return false;
  }
  return true;
}

struct Implementation {
  int (*real)(mpfr_ptr, mpfr_srcptr, mpfr_rnd_t);
  int (*complex)(mpc_ptr, mpc_srcptr, mpc_rnd_t);
  bool periodic;  // Of a real argument.
};

int ComplexLog2(mpc_ptr result, mpc_srcptr argument, mpc_rnd_t rounding) {
  Complex ln2;
  mpfr_const_log2(ln2.real(), MPFR_RNDN);
  mpc_log(result, argument, rounding);
  mpc_div_fr(result, result, ln2.real(), rounding);
  return 1;
}

const Implementation& Of(MathFunction function) {
  // In the order of MathFunction.
  static constexpr Implementation kImplementations[] = {
      {mpfr_sin, mpc_sin, true},      {mpfr_cos, mpc_cos, true},    {mpfr_tan, mpc_tan, true},
      {mpfr_asin, mpc_asin, false},   {mpfr_acos, mpc_acos, false}, {mpfr_atan, mpc_atan, false},
      {mpfr_sinh, mpc_sinh, false},   {mpfr_cosh, mpc_cosh, false}, {mpfr_tanh, mpc_tanh, false},
      {mpfr_exp, mpc_exp, false},     {mpfr_log, mpc_log, false},   {mpfr_log10, mpc_log10, false},
      {mpfr_log2, ComplexLog2, false}};
  return kImplementations[static_cast<size_t>(function)];
}

// f(x) into `result`; false where it has no finite value or takes too long.
bool Evaluate(MathFunction function, const Complex& x, Complex* result) {
  const Implementation& f = Of(function);
  if (x.IsReal()) {
    if (f.periodic && Complex::PartSize(x.real()) > kMaxExponent) return false;
    f.real(result->real(), x.real(), MPFR_RNDN);
    mpfr_set_zero(result->imaginary(), 1);
    if (mpfr_nan_p(result->real()) == 0) return result->IsFinite();
  }
  if (!WithinExponents(x)) return false;
  f.complex(result->get(), x.get(), MPC_RNDNN);
  return result->IsFinite();
}

}  // namespace

struct MathBall::Number {
  Complex value;
  double error = kExact;  // log2 of the bound.

  void AddRounding(bool inexact = true) {
    if (inexact) error = AddErrors(error, value.Size() - kBits + 1);
  }
  double RelativeError() const { return error - value.LeastSize(); }
  bool ContainsZero() const {
    return value.IsZero() || (error != kExact && value.LeastSize() <= error + kSlackBits);
  }
};

// The number, or undefined where it is not finite or not known well enough.
MathBall MathBall::Checked(std::shared_ptr<Number> number) {
  const bool underflow = mpfr_underflow_p() != 0;
  mpfr_clear_flags();
  if (underflow || !number->value.IsFinite() || std::isnan(number->error)) return Undefined();
  if (number->error > std::max(number->value.Size(), 0.0) - kKnownBits) return Undefined();
  // An imaginary part within its error is none, and a negative zero there would pick the other
  // side of a branch cut: sqrt(-4) is 2i.
  Complex& value = number->value;
  if (value.IsReal() || Complex::PartSize(value.imaginary()) <= number->error + kSlackBits) {
    mpfr_set_zero(value.imaginary(), 1);
  }
  return MathBall(std::move(number));
}

MathBall MathBall::Undefined() { return MathBall(std::shared_ptr<const Number>()); }

MathBall::MathBall(const MathRational& value) {
  auto number = std::make_shared<Number>();
  const auto* source = static_cast<mpq_srcptr>(value.gmp());
  const int inexact = mpfr_set_q(number->value.real(), source, MPFR_RNDN);
  number->AddRounding(inexact != 0);
  number_ = std::move(number);
}

MathBall MathBall::Pi() {
  auto number = std::make_shared<Number>();
  mpfr_const_pi(number->value.real(), MPFR_RNDN);
  number->AddRounding();
  return Checked(std::move(number));
}

MathBall MathBall::E() { return MathBall(MathRational(1)).Apply(MathFunction::kExp); }

MathBall MathBall::I() {
  auto number = std::make_shared<Number>();
  mpfr_set_ui(number->value.imaginary(), 1, MPFR_RNDN);
  return Checked(std::move(number));
}

bool MathBall::IsReal() const { return !IsUndefined() && number_->value.IsReal(); }
bool MathBall::ContainsZero() const { return !IsUndefined() && number_->ContainsZero(); }

MathBall MathBall::operator+(const MathBall& other) const {
  if (IsUndefined() || other.IsUndefined()) return Undefined();
  auto sum = std::make_shared<Number>();
  sum->error = AddErrors(number_->error, other.number_->error);
  const int inexact =
      mpc_add(sum->value.get(), number_->value.get(), other.number_->value.get(), MPC_RNDNN);
  sum->AddRounding(inexact != 0);
  return Checked(std::move(sum));
}

MathBall MathBall::operator-() const {
  if (IsUndefined()) return Undefined();
  auto negative = std::make_shared<Number>(*number_);
  mpc_neg(negative->value.get(), negative->value.get(), MPC_RNDNN);
  return Checked(std::move(negative));
}

MathBall MathBall::operator-(const MathBall& other) const { return *this + -other; }

MathBall MathBall::operator*(const MathBall& other) const {
  if (IsUndefined() || other.IsUndefined()) return Undefined();
  const Number& a = *number_;
  const Number& b = *other.number_;
  auto product = std::make_shared<Number>();
  product->error =
      AddErrors(a.error == kExact ? kExact : a.error + AddErrors(b.value.Size(), b.error),
                b.error == kExact ? kExact : b.error + a.value.Size());
  const int inexact = mpc_mul(product->value.get(), a.value.get(), b.value.get(), MPC_RNDNN);
  product->AddRounding(inexact != 0);
  return Checked(std::move(product));
}

MathBall MathBall::operator/(const MathBall& other) const {
  if (IsUndefined() || other.IsUndefined() || other.ContainsZero()) return Undefined();
  const Number& a = *number_;
  const Number& b = *other.number_;
  auto quotient = std::make_shared<Number>();
  // ContainsZero is false, so the divisor's error is small beside the divisor.
  const double least = b.value.LeastSize();
  quotient->error =
      AddErrors(a.error - least + 1,
                b.error == kExact ? kExact : b.RelativeError() + a.value.Size() - least + 1);
  const int inexact = mpc_div(quotient->value.get(), a.value.get(), b.value.get(), MPC_RNDNN);
  quotient->AddRounding(inexact != 0);
  return Checked(std::move(quotient));
}

MathBall MathBall::IntegerPower(int64_t exponent) const {
  if (IsUndefined() || (exponent <= 0 && ContainsZero())) return Undefined();
  if (exponent < 0)
    return MathBall(MathRational(1)) / IntegerPower(exponent == INT64_MIN ? INT64_MAX : -exponent);
  const Number& base = *number_;
  const auto n = static_cast<double>(exponent);
  auto power = std::make_shared<Number>();
  if (base.value.IsReal()) {
    mpfr_pow_si(power->value.real(), base.value.real(), exponent, MPFR_RNDN);
  } else {
    if (n > kMaxExponent) return Undefined();
    mpc_pow_si(power->value.get(), base.value.get(), exponent, MPC_RNDNN);
  }
  if (!power->value.IsFinite()) return Undefined();
  if (base.ContainsZero()) {
    power->error = n * AddErrors(base.value.Size(), base.error);
  } else {
    power->error = power->value.Size() + base.RelativeError() + std::log2(n + 1) + 1;
  }
  power->AddRounding();
  return Checked(std::move(power));
}

MathBall MathBall::Power(const MathBall& exponent) const {
  if (IsUndefined() || exponent.IsUndefined()) return Undefined();
  const Number& base = *number_;
  const Number& w = *exponent.number_;
  if (base.value.IsZero() && base.error == kExact) {
    const bool positive = w.value.IsReal() && !w.ContainsZero() && mpfr_sgn(w.value.real()) > 0;
    return positive ? *this : Undefined();
  }
  if (base.ContainsZero()) return Undefined();
  auto power = std::make_shared<Number>();
  if (base.value.IsReal() && w.value.IsReal() && mpfr_sgn(base.value.real()) > 0) {
    mpfr_pow(power->value.real(), base.value.real(), w.value.real(), MPFR_RNDN);
  } else {
    if (w.value.Size() > 64 || !WithinExponents(base.value) || !WithinExponents(w.value)) {
      return Undefined();
    }
    mpc_pow(power->value.get(), base.value.get(), w.value.get(), MPC_RNDNN);
  }
  if (!power->value.IsFinite()) return Undefined();
  // d(z^w) / z^w = w dz / z + ln z dw, and |ln z| < |exponent of z| + 4.
  const double log_size = std::log2(std::abs(base.value.Size()) + 4);
  const double from_base = base.error == kExact ? kExact : base.RelativeError() + w.value.Size();
  power->error = power->value.Size() + AddErrors(from_base, w.error + log_size) + 1;
  power->AddRounding();
  return Checked(std::move(power));
}

MathBall MathBall::Root(int64_t degree) const {
  if (IsUndefined()) return Undefined();
  const Number& radicand = *number_;
  auto root = std::make_shared<Number>();
  const auto n = static_cast<unsigned long>(degree);
  const bool real_root =
      radicand.value.IsReal() && (mpfr_sgn(radicand.value.real()) >= 0 || (degree % 2 != 0));
  if (real_root) {
    mpfr_rootn_ui(root->value.real(), radicand.value.real(), n, MPFR_RNDN);
  } else if (degree == 2) {
    mpc_sqrt(root->value.get(), radicand.value.get(), MPC_RNDNN);
  } else {
    return Power(MathBall(MathRational(1)) / MathBall(MathRational(degree)));
  }
  if (radicand.value.IsZero() && radicand.error == kExact) return *this;
  if (radicand.ContainsZero()) {
    root->error =
        AddErrors(radicand.value.Size(), radicand.error) / static_cast<double>(degree) + 1;
  } else {
    root->error = root->value.Size() + radicand.RelativeError();
  }
  root->AddRounding();
  return Checked(std::move(root));
}

MathBall MathBall::Absolute() const {
  if (IsUndefined()) return Undefined();
  auto size = std::make_shared<Number>();
  size->error = number_->error;
  const int inexact = mpc_abs(size->value.real(), number_->value.get(), MPFR_RNDN);
  size->AddRounding(inexact != 0);
  return Checked(std::move(size));
}

// The number moved by its error.
MathBall MathBall::Shifted() const {
  auto shifted = std::make_shared<Number>(*number_);
  Complex step;
  mpfr_set_ui_2exp(step.real(), 1, static_cast<mpfr_exp_t>(std::ceil(number_->error)), MPFR_RNDN);
  mpfr_add(shifted->value.real(), number_->value.real(), step.real(), MPFR_RNDU);
  return MathBall(std::shared_ptr<const Number>(std::move(shifted)));
}

MathBall MathBall::Apply(MathFunction function) const {
  if (IsUndefined()) return Undefined();
  auto result = std::make_shared<Number>();
  if (!Evaluate(function, number_->value, &result->value)) return Undefined();
  if (number_->error != kExact) {
    if (std::abs(number_->error) > 0x1p60) return Undefined();  // Beyond MPFR's exponents.
    Complex moved;
    if (!Evaluate(function, Shifted().number_->value, &moved)) return Undefined();
    mpc_sub(moved.get(), moved.get(), result->value.get(), MPC_RNDNN);
    result->error = moved.Size() + 1;
  }
  result->AddRounding();
  return Checked(std::move(result));
}

std::optional<MathRational> MathBall::Floor() const {
  if (!IsReal() || number_->value.Size() > static_cast<double>(MathRational::kMaxBits)) {
    return std::nullopt;
  }
  Complex nearest;
  mpfr_rint(nearest.real(), number_->value.real(), MPFR_RNDN);
  Complex distance;
  mpfr_sub(distance.real(), number_->value.real(), nearest.real(), MPFR_RNDN);
  const bool integer = distance.IsZero() || distance.Size() <= number_->error + kSlackBits;
  if (!integer) mpfr_rint(nearest.real(), number_->value.real(), MPFR_RNDD);
  mpz_t floor;
  mpz_init(floor);
  mpfr_get_z(floor, nearest.real(), MPFR_RNDN);
  char* digits = mpz_get_str(nullptr, 10, floor);
  std::string_view text(digits);
  const bool negative = text.front() == '-';
  std::optional<MathRational> result = MathRational::FromDigits(text.substr(negative ? 1 : 0));
  if (result && negative) result = result->Negative();
  void (*release)(void*, size_t) = nullptr;
  mp_get_memory_functions(nullptr, nullptr, &release);
  release(digits, text.size() + 1);
  mpz_clear(floor);
  return result;
}

bool Overlap(const MathBall& a, const MathBall& b) {
  if (a.IsUndefined() || b.IsUndefined()) return false;
  if (a.ContainsZero() != b.ContainsZero()) return false;
  Complex difference;
  mpc_sub(difference.get(), a.number_->value.get(), b.number_->value.get(), MPC_RNDNN);
  if (difference.IsZero()) return true;
  return difference.Size() <= AddErrors(a.number_->error, b.number_->error) + kSlackBits;
}

std::optional<int> Order(const MathBall& a, const MathBall& b) {
  if (!a.IsReal() || !b.IsReal()) return std::nullopt;
  if (Overlap(a, b)) return 0;
  return mpfr_cmp(a.number_->value.real(), b.number_->value.real()) < 0 ? -1 : 1;
}

}  // namespace pmkvq
