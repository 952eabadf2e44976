#include "pmkvq/eval/math_expression.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <numbers>
#include <string>

namespace pmkvq {
namespace {

using Complex = MathValue::Complex;
using Function = Complex (*)(const Complex&);

constexpr int kMaxDepth = 64;
constexpr size_t kMaxLength = 4096;
constexpr int64_t kMaxFactorial = 1000;

struct NamedFunction {
  std::string_view name;
  Function function;
};

constexpr NamedFunction kFunctions[] = {
    {"sin", [](const Complex& x) { return std::sin(x); }},
    {"cos", [](const Complex& x) { return std::cos(x); }},
    {"tan", [](const Complex& x) { return std::tan(x); }},
    {"cot", [](const Complex& x) { return Complex(1) / std::tan(x); }},
    {"sec", [](const Complex& x) { return Complex(1) / std::cos(x); }},
    {"csc", [](const Complex& x) { return Complex(1) / std::sin(x); }},
    {"arcsin", [](const Complex& x) { return std::asin(x); }},
    {"arccos", [](const Complex& x) { return std::acos(x); }},
    {"arctan", [](const Complex& x) { return std::atan(x); }},
    {"sinh", [](const Complex& x) { return std::sinh(x); }},
    {"cosh", [](const Complex& x) { return std::cosh(x); }},
    {"tanh", [](const Complex& x) { return std::tanh(x); }},
    {"exp", [](const Complex& x) { return std::exp(x); }},
    {"ln", [](const Complex& x) { return std::log(x); }},
    {"lg", [](const Complex& x) { return std::log10(x); }},
    {"log", [](const Complex& x) { return std::log10(x); }},
};

constexpr std::string_view kSymbols[] = {
    "alpha", "beta",   "gamma",  "delta", "epsilon", "varepsilon", "zeta",  "eta",   "theta",
    "iota",  "kappa",  "lambda", "mu",    "nu",      "xi",         "rho",   "sigma", "tau",
    "phi",   "varphi", "chi",    "psi",   "omega",   "Gamma",      "Delta", "Theta", "Lambda",
    "Xi",    "Pi",     "Sigma",  "Phi",   "Psi",     "Omega",      "ell",   "hbar",  "infty"};

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsLetter(char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0; }

const NamedFunction* FindFunction(std::string_view name) {
  const auto* found = std::find_if(std::begin(kFunctions), std::end(kFunctions),
                                   [&](const NamedFunction& f) { return f.name == name; });
  return found == std::end(kFunctions) ? nullptr : found;
}

// Thrown inside this file only: the text is not an expression.
struct NotAnExpression {};

class Parser {
 public:
  Parser(std::string_view text, int point) : text_(text), point_(point) {}

  MathValue Parse() {
    const MathValue value = Sum();
    if (at_ != text_.size()) throw NotAnExpression();
    return value;
  }

 private:
  // Counts one level of nesting.
  class Nesting {
   public:
    explicit Nesting(int* depth) : depth_(depth) {
      if (++*depth_ > kMaxDepth) {
        --*depth_;
        throw NotAnExpression();
      }
    }
    ~Nesting() { --*depth_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;

   private:
    int* depth_;
  };

  char Peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool Take(char c) {
    if (Peek() != c) return false;
    ++at_;
    return true;
  }
  void Expect(char c) {
    if (!Take(c)) throw NotAnExpression();
  }
  void SkipBlank() {
    while (Peek() == ' ') ++at_;
  }

  // The name of the command or of the run of letters at the cursor; "" when there is none.
  std::string_view PeekName() const {
    size_t begin = at_;
    if (Peek() == '\\') ++begin;
    size_t end = begin;
    while (end < text_.size() && IsLetter(text_[end])) ++end;
    return text_.substr(begin, end - begin);
  }
  void TakeName() {
    if (Peek() == '\\') ++at_;
    while (IsLetter(Peek())) ++at_;
    SkipBlank();
  }

  MathValue Sum() {
    const Nesting nesting(&depth_);
    MathValue sum = SignedProduct();
    while (Peek() == '+' || Peek() == '-') {
      const bool plus = text_[at_++] == '+';
      const MathValue term = SignedProduct();
      sum = plus ? sum + term : sum - term;
    }
    return sum;
  }

  // One sign in front only: "--2" is a slip, not a number.
  bool TakeSign() {
    const bool negative = Peek() == '-';
    if (negative || Peek() == '+') ++at_;
    return negative;
  }

  MathValue SignedProduct() {
    const bool negative = TakeSign();
    MathValue product = Power();
    while (true) {
      if (Take('*')) {
        product = product * SignedPower();
      } else if (Take('/')) {
        product = product / SignedPower();
      } else if (StartsFactor()) {
        product = product * Power();
      } else {
        return negative ? -product : product;
      }
    }
  }

  MathValue SignedPower() {
    const bool negative = TakeSign();
    const MathValue value = Power();
    return negative ? -value : value;
  }

  // Whether an implicit factor starts here. A number may follow anything but a number.
  bool StartsFactor() const {
    const char c = Peek();
    if (IsDigit(c) || c == '.') return at_ > 0 && !IsDigit(text_[at_ - 1]);
    return IsLetter(c) || c == '(' || c == '{' || c == '[' || (c == '\\' && !PeekName().empty());
  }

  MathValue Power() {
    const Nesting nesting(&depth_);
    MathValue value = Primary();
    while (true) {
      if (Take('!')) {
        value = Factorial(value);
      } else if (Take('^')) {
        value = value.Power(Exponent());
      } else {
        return value;
      }
    }
  }

  // What stands behind '^': a sign is allowed, and 2^{3}^{4} is not.
  MathValue Exponent() {
    const bool negative = TakeSign();
    const MathValue value = IsDigit(Peek()) ? Number() : Primary();
    if (Peek() == '^') throw NotAnExpression();
    return negative ? -value : value;
  }

  static MathValue Factorial(const MathValue& value) {
    const std::optional<int64_t> n = value.integer();
    if (!n || *n < 0 || *n > kMaxFactorial) throw NotAnExpression();
    MathValue product = MathValue::Integer(1);
    for (int64_t i = 2; i <= *n; ++i) product = product * MathValue::Integer(i);
    return product;
  }

  MathValue Primary() {
    const Nesting nesting(&depth_);
    SkipBlank();
    const char c = Peek();
    if (IsDigit(c) || c == '.') return NumberOrMixed();
    if (c == '(') return Enclosed('(', ')');
    if (c == '{') return Enclosed('{', '}');
    if (c == '[') return Enclosed('[', ']');
    if (c == '|') return Enclosed('|', '|').Absolute();
    return Named();
  }

  MathValue Enclosed(char open, char close) {
    Expect(open);
    const MathValue value = Sum();
    Expect(close);
    return value;
  }

  std::string_view Digits() {
    const size_t begin = at_;
    while (IsDigit(Peek())) ++at_;
    return text_.substr(begin, at_ - begin);
  }

  // Digits, point and decimal exponent; the exponent's e must be followed by a digit or sign.
  MathValue Number() {
    const size_t begin = at_;
    Digits();
    if (Take('.')) Digits();
    const std::string_view digits = text_.substr(begin, at_ - begin);
    if (digits == ".") throw NotAnExpression();
    int64_t exponent = 0;
    if (Peek() == 'e' || Peek() == 'E') {
      size_t i = at_ + 1;
      if (i < text_.size() && (text_[i] == '-' || text_[i] == '+')) ++i;
      if (i < text_.size() && IsDigit(text_[i])) exponent = DecimalExponent(i);
    }
    return MathValue::Decimal(digits, exponent);
  }

  int64_t DecimalExponent(size_t digits_begin) {
    const bool negative = text_[digits_begin - 1] == '-';
    at_ = digits_begin;
    int32_t exponent = 0;
    const std::string_view digits = Digits();
    const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), exponent);
    if (result.ec != std::errc()) throw NotAnExpression();
    return negative ? -exponent : exponent;
  }

  MathValue NumberOrMixed() {
    const size_t begin = at_;
    const MathValue number = Number();
    const std::string_view digits = text_.substr(begin, at_ - begin);
    if (Peek() == '_') return MathValueOfBase(digits);
    const bool whole = std::all_of(digits.begin(), digits.end(), IsDigit);
    if (const std::optional<MathValue> part = whole ? FractionOfMixed() : std::nullopt) {
      return number + *part;
    }
    return number;
  }

  // "52_8": a name of its own, as nothing says which base a plain number stands for.
  MathValue MathValueOfBase(std::string_view digits) {
    const std::string base = Subscript();
    if (base == "10") return MathValue::Decimal(digits, 0);
    return MathValue::Variable(std::string(digits) + "_" + base, point_);
  }

  std::string Subscript() {
    Expect('_');
    if (!Take('{')) {
      if (IsDigit(Peek())) return std::string(Digits());
      if (!IsLetter(Peek())) throw NotAnExpression();
      return std::string(1, text_[at_++]);
    }
    const size_t end = text_.find('}', at_);
    if (end == std::string_view::npos) throw NotAnExpression();
    std::string name(text_.substr(at_, end - at_));
    at_ = end + 1;
    return name;
  }

  // The proper fraction behind a whole number, "\frac{4}{5}" or " 4/5", if that is what follows.
  std::optional<MathValue> FractionOfMixed() {
    const size_t start = at_;
    std::string_view numerator;
    std::string_view denominator;
    if (Take(' ')) {
      numerator = Digits();
      if (Take('/')) denominator = Digits();
    } else if (text_.substr(at_, 5) == "\\frac") {
      at_ += 5;
      numerator = FractionPart();
      denominator = FractionPart();
    }
    const bool both = !numerator.empty() && !denominator.empty();
    if (both && (numerator.size() < denominator.size() ||
                 (numerator.size() == denominator.size() && numerator < denominator))) {
      return MathValue::Decimal(numerator, 0) / MathValue::Decimal(denominator, 0);
    }
    at_ = start;
    return std::nullopt;
  }

  // The digits of "{12}" or of a single "1"; "" for anything else.
  std::string_view FractionPart() {
    SkipBlank();
    if (!Take('{')) {
      if (!IsDigit(Peek())) return {};
      return text_.substr(at_++, 1);
    }
    const std::string_view digits = Digits();
    return Take('}') ? digits : std::string_view();
  }

  // An argument as TeX reads it: a group or one symbol.
  MathValue Argument() {
    SkipBlank();
    if (IsDigit(Peek())) return MathValue::Integer(text_[at_++] - '0');
    if (Peek() == '-') throw NotAnExpression();
    return Primary();
  }

  MathValue Named() {
    const std::string_view name = PeekName();
    const bool command = Peek() == '\\';
    if (name.empty()) throw NotAnExpression();
    if (name == "frac" && command) {
      TakeName();
      const MathValue numerator = Argument();
      return numerator / Argument();
    }
    if (name == "binom" && command) return Binomial();
    if (name == "sqrt") return SquareRoot();
    if (name == "pi") {
      TakeName();
      return MathValue::Approximate(std::numbers::pi_v<long double>);
    }
    if (const NamedFunction* function = FindFunction(name)) return Call(*function);
    if (command) {
      if (std::find(std::begin(kSymbols), std::end(kSymbols), name) == std::end(kSymbols)) {
        throw NotAnExpression();
      }
      TakeName();
      return VariableNamed("\\" + std::string(name));
    }
    return Letter(name);
  }

  MathValue Letter(std::string_view run) {
    // Three letters are a word, no product of variables: anagrams would be equal.
    if (run.size() > 2) throw NotAnExpression();
    const char letter = text_[at_++];
    if (letter == 'e' && Peek() != '_') {
      return MathValue::Approximate(std::numbers::e_v<long double>);
    }
    if (letter == 'i' && Peek() != '_') return MathValue::Approximate(Complex(0, 1));
    return VariableNamed(std::string(1, letter));
  }

  MathValue VariableNamed(std::string name) {
    if (Peek() == '_') name += "_" + Subscript();
    return MathValue::Variable(name, point_);
  }

  MathValue Binomial() {
    TakeName();
    const std::optional<int64_t> n = Argument().integer();
    const std::optional<int64_t> k = Argument().integer();
    if (!n || !k || *k < 0 || *k > *n) throw NotAnExpression();
    const int64_t steps = std::min(*k, *n - *k);
    if (steps > kMaxFactorial) throw NotAnExpression();
    MathValue value = MathValue::Integer(1);
    for (int64_t i = 1; i <= steps; ++i) {
      value = value * MathValue::Integer(*n - steps + i) / MathValue::Integer(i);
    }
    return value;
  }

  MathValue SquareRoot() {
    TakeName();
    std::optional<int64_t> degree = 2;
    if (Peek() == '[') degree = Enclosed('[', ']').integer();
    if (!degree) throw NotAnExpression();
    SkipBlank();
    const MathValue radicand = IsDigit(Peek()) ? Number() : Argument();
    return radicand.Root(*degree);
  }

  // "\sin x", "\sin^2 x", "\sin(2x)", "\log_2 8".
  MathValue Call(const NamedFunction& function) {
    TakeName();
    std::optional<MathValue> base;
    std::optional<MathValue> exponent;
    if (function.name == "log" && Take('_')) base = Argument();
    if (Take('^')) exponent = Exponent();
    const MathValue argument = FunctionArgument();
    MathValue value = argument.Apply(function.function);
    if (base) value = value / base->Apply(function.function);
    if (!exponent) return value;
    // \sin^{-1} is the inverse, not the reciprocal.
    if (exponent->integer() == -1) throw NotAnExpression();
    return value.Power(*exponent);
  }

  MathValue FunctionArgument() {
    SkipBlank();
    if (Peek() == '(' || Peek() == '{' || Peek() == '[') return Primary();
    MathValue product = SignedPower();
    while ((IsDigit(Peek()) || IsLetter(Peek()) || Peek() == '\\') && StartsFactor() &&
           FindFunction(PeekName()) == nullptr) {
      product = product * Power();
    }
    return product;
  }

  std::string_view text_;
  int point_;
  size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace

std::optional<MathValue> EvaluateExpression(std::string_view normalized, int point) {
  if (normalized.size() > kMaxLength) return std::nullopt;
  try {
    const MathValue value = Parser(normalized, point).Parse();
    if (value.IsUndefined()) return std::nullopt;
    return value;
  } catch (const NotAnExpression&) {
    return std::nullopt;
  }
}

}  // namespace pmkvq
