#include "pmkvq/research/judge/math_expression.h"

#include <algorithm>
#include <cctype>
#include <string>

#include "pmkvq/research/judge/math_number.h"

namespace pmkvq {
namespace {

constexpr int kMaxDepth = 64;
constexpr size_t kMaxLength = 4096;
constexpr int64_t kMaxFactorial = 1000;

using Function = MathValue (*)(const MathValue&);

template <MathFunction function>
MathValue Plain(const MathValue& x) {
  return x.Apply(function);
}
template <MathFunction function>
MathValue Reciprocal(const MathValue& x) {
  return MathValue::Integer(1) / x.Apply(function);
}

struct NamedFunction {
  std::string_view name;
  Function function;
  Function inverse;  // Of \sin^{-1}; may be null.
};

constexpr NamedFunction kFunctions[] = {
    {"sin", Plain<MathFunction::kSin>, Plain<MathFunction::kArcsin>},
    {"cos", Plain<MathFunction::kCos>, Plain<MathFunction::kArccos>},
    {"tan", Plain<MathFunction::kTan>, Plain<MathFunction::kArctan>},
    {"tg", Plain<MathFunction::kTan>, Plain<MathFunction::kArctan>},
    {"cot",
     [](const MathValue& x) { return x.Apply(MathFunction::kCos) / x.Apply(MathFunction::kSin); },
     nullptr},
    {"sec", Reciprocal<MathFunction::kCos>, nullptr},
    {"csc", Reciprocal<MathFunction::kSin>, nullptr},
    {"arcsin", Plain<MathFunction::kArcsin>, nullptr},
    {"arccos", Plain<MathFunction::kArccos>, nullptr},
    {"arctan", Plain<MathFunction::kArctan>, nullptr},
    {"sinh", Plain<MathFunction::kSinh>, nullptr},
    {"cosh", Plain<MathFunction::kCosh>, nullptr},
    {"tanh", Plain<MathFunction::kTanh>, nullptr},
    {"exp", Plain<MathFunction::kExp>, nullptr},
    {"ln", Plain<MathFunction::kLn>, nullptr},
    {"lg", Plain<MathFunction::kLog10>, nullptr},
    {"log", Plain<MathFunction::kLog10>, nullptr},
};

constexpr std::string_view kSymbols[] = {
    "alpha", "beta",   "gamma",  "delta", "epsilon", "varepsilon", "zeta",  "eta",   "theta",
    "iota",  "kappa",  "lambda", "mu",    "nu",      "xi",         "rho",   "sigma", "tau",
    "phi",   "varphi", "chi",    "psi",   "omega",   "Gamma",      "Delta", "Theta", "Lambda",
    "Xi",    "Pi",     "Sigma",  "Phi",   "Psi",     "Omega",      "ell",   "hbar",  "infty"};

// Commands that end a factor.
constexpr std::string_view kClosing[] = {"rfloor", "rceil", "degree"};

template <class Range>
bool Contains(const Range& range, std::string_view value) {
  return std::find(std::begin(range), std::end(range), value) != std::end(range);
}

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
    return IsLetter(c) || c == '(' || c == '{' || c == '[' ||
           (c == '\\' && !PeekName().empty() && !Contains(kClosing, PeekName()));
  }

  MathValue Power() {
    const Nesting nesting(&depth_);
    MathValue value = Primary();
    while (true) {
      if (Take('!')) {
        if (Peek() == '!') throw NotAnExpression();  // A double factorial.
        value = Factorial(value);
      } else if (Peek() == '\\' && PeekName() == "degree") {
        TakeName();
        value = value * MathValue::Approximate(MathBall::Pi()) / MathValue::Integer(180);
      } else if (Take('^')) {
        value = value.Power(Exponent());
      } else {
        return value;
      }
    }
  }

  // The exponent behind '^': a sign is allowed, and 2^{3}^{4} is not.
  MathValue Exponent() {
    const bool negative = TakeSign();
    const MathValue value = IsDigit(Peek()) ? Number() : Primary();
    if (Peek() == '^') throw NotAnExpression();
    return negative ? -value : value;
  }

  static MathValue Factorial(const MathValue& value) {
    const std::optional<int64_t> n = value.integer();
    if (!n || *n < 0 || *n > kMaxFactorial) throw NotAnExpression();
    return Exactly(MathRational::Factorial(*n));
  }

  // Within the limit of exact numbers.
  static MathValue Exactly(const std::optional<MathRational>& value) {
    if (!value) throw NotAnExpression();
    return MathValue::Rational(*value);
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

  // Behind the command of an opening bracket, up to that of the closing one.
  MathValue Bracketed(std::string_view close) {
    TakeName();
    const MathValue value = Sum();
    if (Peek() != '\\' || PeekName() != close) throw NotAnExpression();
    TakeName();
    return value;
  }

  std::string_view Digits() {
    const size_t begin = at_;
    while (IsDigit(Peek())) ++at_;
    return text_.substr(begin, at_ - begin);
  }

  MathValue Number() { return TakeNumeral().value; }

  Numeral TakeNumeral() {
    const std::optional<Numeral> numeral = ReadNumeral(text_.substr(at_));
    if (!numeral) throw NotAnExpression();
    at_ += numeral->length;
    return *numeral;
  }

  MathValue NumberOrMixed() {
    const size_t begin = at_;
    const Numeral number = TakeNumeral();
    if (Peek() == '_') return MathValueOfBase(text_.substr(begin, at_ - begin));
    if (const std::optional<MathValue> part = number.whole ? FractionOfMixed() : std::nullopt) {
      return number.value + *part;
    }
    return number.value;
  }

  // "52_8" is equal only to itself: the base of a number without a subscript is not known.
  MathValue MathValueOfBase(std::string_view digits) {
    const std::string base = Subscript();
    if (!std::all_of(digits.begin(), digits.end(), IsDigit)) throw NotAnExpression();
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

  // The proper fraction behind a whole number, "\frac{4}{5}" or " 4/5"; nothing for other text.
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
    if (name == "lfloor" && command) return Bracketed("rfloor").Floor();
    if (name == "lceil" && command) return -(-Bracketed("rceil")).Floor();
    if (name == "sqrt") return SquareRoot();
    if (name == "pi") {
      TakeName();
      return MathValue::Approximate(MathBall::Pi());
    }
    if (const NamedFunction* function = FindFunction(name)) return Call(*function);
    if (command) {
      if (!Contains(kSymbols, name)) throw NotAnExpression();
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
      return MathValue::Approximate(MathBall::E());
    }
    if (letter == 'i' && Peek() != '_') return MathValue::Approximate(MathBall::I());
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
    if (std::min(*k, *n - *k) > kMaxFactorial) throw NotAnExpression();
    return Exactly(MathRational::Binomial(*n, *k));
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
    // \sin^{-1} is the inverse, not the reciprocal.
    if (exponent && exponent->integer() == -1) {
      if (function.inverse == nullptr) throw NotAnExpression();
      return function.inverse(argument);
    }
    MathValue value = function.function(argument);
    if (base) value = value / function.function(*base);
    if (!exponent) return value;
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

const std::optional<MathValue>& ExpressionCache::At(std::string_view normalized, int point) {
  static const std::optional<MathValue> kNothing;
  const auto at = static_cast<size_t>(point);
  Entry& entry = entries_[std::string(normalized)];
  if (!entry.known[at]) {
    work_ += normalized.size() + 1;
    if (work_ > kMaxWork) return kNothing;
    entry.values[at] = EvaluateExpression(normalized, point);
    entry.known[at] = true;
  }
  return entry.values[at];
}

bool ExpressionCache::SameValue(std::string_view a, std::string_view b) {
  for (int point = 0; point < kNumPoints; ++point) {
    const std::optional<MathValue>& x = At(a, point);
    if (!x) return false;
    const std::optional<MathValue>& y = At(b, point);
    if (!y || !Agree(*x, *y)) return false;
  }
  return true;
}

std::optional<MathValue> ExpressionCache::Constant(std::string_view normalized) {
  const std::optional<MathValue> first = At(normalized, 0);
  if (!first) return std::nullopt;
  for (int point = 1; point < kNumPoints; ++point) {
    const std::optional<MathValue>& other = At(normalized, point);
    if (!other || !Agree(*first, *other)) return std::nullopt;
  }
  return first;
}

}  // namespace pmkvq
