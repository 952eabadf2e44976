#include "pmkvq/research/judge/math_normalize.h"

#include <algorithm>
#include <cctype>
#include <iterator>
#include <utility>
#include <vector>

#include "pmkvq/base/strings.h"
#include "pmkvq/research/judge/math_markup.h"

namespace pmkvq {
namespace {

constexpr int kMaxTextDepth = 8;

using Renaming = std::pair<std::string_view, std::string_view>;

constexpr Renaming kCommands[] = {{"dfrac", "\\frac"},   {"tfrac", "\\frac"},
                                  {"cfrac", "\\frac"},   {"dbinom", "\\binom"},
                                  {"tbinom", "\\binom"}, {"leq", "\\le"},
                                  {"leqslant", "\\le"},  {"geq", "\\ge"},
                                  {"geqslant", "\\ge"},  {"neq", "\\ne"},
                                  {"lt", "<"},           {"gt", ">"},
                                  {"cdot", "*"},         {"times", "*"},
                                  {"ast", "*"},          {"div", "/"},
                                  {"lbrace", "\\{"},     {"rbrace", "\\}"},
                                  {"lbrack", "["},       {"rbrack", "]"},
                                  {"vert", "|"},         {"lvert", "|"},
                                  {"rvert", "|"},        {"mid", "|"},
                                  {"colon", ":"},        {"varnothing", "\\emptyset"},
                                  {"ldots", "\\dots"},   {"cdots", "\\dots"},
                                  {"simeq", "\\approx"}, {"vee", "\\lor"},
                                  {"wedge", "\\land"},   {"backslash", "\\setminus"},
                                  {"infin", "\\infty"},  {"Vert", "|"},
                                  {"lVert", "|"},        {"rVert", "|"}};

constexpr std::string_view kDropped[] = {
    "left",   "right",  "big",          "Big",        "bigg",         "Bigg",     "bigl",
    "bigr",   "Bigl",   "Bigr",         "biggl",      "biggr",        "Biggl",    "Biggr",
    "quad",   "qquad",  "displaystyle", "textstyle",  "limits",       "rm",       "bf",
    "mathbf", "mathit", "boldsymbol",   "bm",         "boxed",        "fbox",     "thinspace",
    "mathop", "mathsf", "tiny",         "scriptsize", "footnotesize", "small",    "normalsize",
    "large",  "Large",  "LARGE",        "huge",       "Huge",         "enspace",  "enskip",
    "space",  "hfill",  "noindent",     "allowbreak", "negthinspace", "medspace", "thickspace",
    "strut",  "middle", "scriptstyle",  "it",         "tt",           "sf",       "sc",
    "cal",    "mathtt", "mathnormal",   "pmb",        "nonumber",     "hline",    "par"};

constexpr std::string_view kTrigonometric[] = {"sin", "cos", "tan", "cot", "sec", "csc", "tg"};

// Command and canonical name of the unit.
constexpr Renaming kCurrencies[] = {
    {"euro", "euro"},          {"pounds", "pound"},      {"yen", "yen sign"},
    {"rupee", "rupee"},        {"won", "won"},           {"rouble", "rouble"},
    {"dollar", "dollar"},      {"textdollar", "dollar"}, {"texteuro", "euro"},
    {"textsterling", "pound"}, {"textyen", "yen sign"},  {"franc", "franc"}};

constexpr std::string_view kTextCommands[] = {
    "text", "textbf", "textit", "textrm", "texttt",       "textsf",   "textnormal",
    "mbox", "hbox",   "mathrm", "emph",   "operatorname", "underline"};

template <class Range>
bool Contains(const Range& range, std::string_view value) {
  return std::find(std::begin(range), std::end(range), value) != std::end(range);
}

bool IsLetter(char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0; }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }
constexpr std::string_view kBlanks = " \t\r\n~";
bool IsBlank(char c) { return kBlanks.find(c) != std::string_view::npos; }

struct Token {
  std::string text;
  bool blank_before = false;
  bool tight = false;  // A comma that its author marked as a thousands separator.
  char joins = '\0';   // 'o' and 'a' for a comma that was "or" and "and".

  bool IsDigit() const { return text.size() == 1 && pmkvq::IsDigit(text[0]); }
};

class Lexer {
 public:
  Lexer(std::string_view text, int depth, std::vector<Token>* tokens, std::string_view* currency)
      : text_(text), depth_(depth), tokens_(*tokens), currency_(*currency) {}

  void Run() {
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (IsBlank(c)) {
        blank_ = true;
        ++at_;
      } else if (c == '\\') {
        Backslash();
      } else if (c == '$' || c == '"' || c == '%') {
        ++at_;
      } else if (text_.substr(at_, 2) == "**") {
        Emit("^");
        at_ += 2;
      } else if (!Conjunction()) {
        Emit(std::string_view(&c, 1));
        ++at_;
      }
    }
  }

 private:
  void Emit(std::string_view text) {
    tokens_.push_back({std::string(text), blank_, false, '\0'});
    blank_ = false;
  }

  // The comma for a word that joins; "1, and 2" has one already.
  void EmitComma(char joins) {
    if (tokens_.empty() || tokens_.back().text != ",") Emit(",");
    tokens_.back().joins = joins;
    blank_ = true;  // No thousands separator.
  }

  // " and " and " or " between blanks are commas.
  bool Conjunction() {
    for (const std::string_view word : {"and", "or"}) {
      const size_t end = at_ + word.size();
      if (blank_ && text_.substr(at_, word.size()) == word && end < text_.size() &&
          IsBlank(text_[end])) {
        EmitComma(word[0]);
        at_ = end;
        return true;
      }
    }
    return false;
  }

  void Backslash() {
    const size_t begin = ++at_;
    while (at_ < text_.size() && IsLetter(text_[at_])) ++at_;
    if (at_ > begin) {
      Command(text_.substr(begin, at_ - begin));
    } else if (at_ < text_.size()) {
      Escaped(text_[at_++]);
    }
  }

  void Escaped(char c) {
    if (c == '!' && !tokens_.empty() && tokens_.back().text == ",") tokens_.back().tight = true;
    if (c == '$') currency_ = "dollar";
    if (c == '\\') Emit("\\\\");
    if (c == '{' || c == '}') Emit(c == '{' ? "\\{" : "\\}");
    if (c == '|') Emit("|");
    if (c == '_' || c == '&' || c == '#') Emit(std::string_view(&c, 1));
    if (IsBlank(c)) blank_ = true;
  }

  void Command(std::string_view name) {
    if (name == "left" || name == "right") {
      if (at_ < text_.size() && text_[at_] == '.') ++at_;  // An invisible bracket.
    } else if (name == "circ" || name == "degree") {
      DropDegree();
      if (trigonometric_) Emit("\\degree");
    } else if (Contains(kTextCommands, name)) {
      Text(name);
    } else if (const auto* sign =
                   std::find_if(std::begin(kCurrencies), std::end(kCurrencies),
                                [&](const Renaming& entry) { return entry.first == name; });
               sign != std::end(kCurrencies)) {
      currency_ = sign->second;
    } else if (!Contains(kDropped, name)) {
      trigonometric_ = trigonometric_ || Contains(kTrigonometric, name);
      const auto* found = std::find_if(std::begin(kCommands), std::end(kCommands),
                                       [&](const Renaming& entry) { return entry.first == name; });
      Emit(found == std::end(kCommands) ? "\\" + std::string(name) : std::string(found->second));
    }
  }

  // "^\circ" and "^{\circ}".
  void DropDegree() {
    const bool group = tokens_.size() >= 2 && tokens_.back().text == "{" &&
                       tokens_[tokens_.size() - 2].text == "^";
    if (group) {
      tokens_.resize(tokens_.size() - 2);
      while (at_ < text_.size() && text_[at_] != '}') ++at_;
      if (at_ < text_.size()) ++at_;
    } else if (!tokens_.empty() && tokens_.back().text == "^") {
      tokens_.pop_back();
    } else if (tokens_.empty() || !(IsDigit(tokens_.back().text[0]) || trigonometric_)) {
      Emit("\\circ");  // A composition of functions.
    }
  }

  void Text(std::string_view name) {
    while (at_ < text_.size() && IsBlank(text_[at_])) ++at_;
    if (at_ == text_.size() || text_[at_] != '{') return;
    const size_t begin = at_ + 1;
    int braces = 0;
    size_t end = at_;
    for (; end < text_.size(); ++end) {
      if (text_[end] == '{') ++braces;
      if (text_[end] == '}' && --braces == 0) break;
    }
    if (end == text_.size() || depth_ >= kMaxTextDepth) {
      at_ = begin;  // Not closed: read on as if it were no text.
      return;
    }
    const std::string_view content = text_.substr(begin, end - begin);
    at_ = end + 1;
    const std::string_view word = Trim(content, kBlanks);
    if (word == "and" || word == "or" || word == ", and" || word == ",and" || word == ", or") {
      EmitComma(word.back() == 'r' ? 'o' : 'a');
      return;
    }
    if (name == "operatorname") {
      Emit("\\" + std::string(word));
      return;
    }
    Lexer(content, depth_ + 1, &tokens_, &currency_).Run();
    blank_ = true;
  }

  std::string_view text_;
  int depth_;
  std::vector<Token>& tokens_;
  std::string_view& currency_;
  bool trigonometric_ = false;  // A function of an angle came before.
  size_t at_ = 0;
  bool blank_ = false;
};

// Number of digits in a row that end before (step -1) or begin at (step 1) `at`, without blanks
// between them.
size_t DigitRun(const std::vector<Token>& tokens, size_t at, int step) {
  size_t count = 0;
  size_t i = step > 0 ? at : at - 1;
  for (; i < tokens.size() && tokens[i].IsDigit(); i += static_cast<size_t>(step)) {
    if (step > 0 && count > 0 && tokens[i].blank_before) break;
    ++count;
    if (step < 0 && tokens[i].blank_before) break;
  }
  return count;
}

// Whether the comma at `at` has one to three digits before it and exactly three behind it.
bool SeparatesThousands(const std::vector<Token>& tokens, size_t at) {
  const Token& comma = tokens[at];
  if (at == 0 || at + 1 >= tokens.size()) return false;
  if (!comma.tight && (comma.blank_before || tokens[at + 1].blank_before)) return false;
  const size_t before = DigitRun(tokens, at, -1);
  if (before == 0 || before > 3 || DigitRun(tokens, at + 1, 1) != 3) return false;
  const size_t first = at - before;
  const bool follows_comma = first > 0 && tokens[first - 1].text == ",";
  const bool follows_point = first > 0 && tokens[first - 1].text == ".";
  return !follows_point && (follows_comma ? before == 3 : tokens[first].text != "0");
}

// "{,}": a comma that TeX sets without space, that is, inside a number.
void JoinBracedCommas(std::vector<Token>* tokens) {
  std::vector<Token> joined;
  for (size_t i = 0; i < tokens->size(); ++i) {
    const bool braced = i + 2 < tokens->size() && (*tokens)[i].text == "{" &&
                        (*tokens)[i + 1].text == "," && (*tokens)[i + 2].text == "}";
    if (!braced) {
      joined.push_back((*tokens)[i]);
      continue;
    }
    joined.push_back({",", false, true, '\0'});
    i += 2;
  }
  *tokens = std::move(joined);
}

// Unmarked commas outside of brackets are separators of thousands only if all of them can be:
// "1,234,5" is a list.
void RemoveThousandsSeparators(std::vector<Token>* tokens) {
  int depth = 0;
  bool all = true;
  std::vector<size_t> plain;
  std::vector<bool> removed(tokens->size(), false);
  for (size_t i = 0; i < tokens->size(); ++i) {
    Token& token = (*tokens)[i];
    if (token.text == "(" || token.text == "[" || token.text == "\\{") ++depth;
    if (token.text == ")" || token.text == "]" || token.text == "\\}") --depth;
    if (token.text != ",") continue;
    const bool separates = SeparatesThousands(*tokens, i);
    if (token.tight) {
      removed[i] = separates;
      // The decimal comma of most of Europe.
      if (!separates && DigitRun(*tokens, i + 1, 1) > 0 && i > 0 && (*tokens)[i - 1].IsDigit()) {
        token.text = ".";
      }
    } else if (depth == 0) {
      all = all && separates;
      plain.push_back(i);
    }
  }
  for (const size_t i : plain) removed[i] = all;
  std::vector<Token> kept;
  for (size_t i = 0; i < tokens->size(); ++i) {
    if (removed[i]) continue;
    kept.push_back((*tokens)[i]);
    if (i > 0 && removed[i - 1]) kept.back().blank_before = false;
  }
  *tokens = std::move(kept);
}

// "12 345" is one number, "1 2" are two.
bool JoinsThousands(const std::vector<Token>& tokens, size_t at) {
  const size_t before = DigitRun(tokens, at, -1);
  return before >= 1 && before <= 3 && DigitRun(tokens, at, 1) == 3;
}

// "or" and "and" between inequalities are more than commas: they join and intersect.
void MarkJunctions(std::vector<Token>* tokens) {
  const bool inequalities = std::any_of(tokens->begin(), tokens->end(), [](const Token& token) {
    return token.text == "<" || token.text == ">" || token.text == "\\le" || token.text == "\\ge" ||
           token.text == "\\ne";
  });
  if (!inequalities) return;
  for (Token& token : *tokens) {
    if (token.joins != '\0') token.text = token.joins == 'o' ? "\\lor" : "\\land";
  }
}

std::string Write(const std::vector<Token>& tokens) {
  std::string text;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const Token& token = tokens[i];
    if (i > 0) {
      const std::string& last = tokens[i - 1].text;
      const bool command = last.size() > 1 && last[0] == '\\' && IsLetter(last[1]);
      const bool numbers = token.blank_before && token.IsDigit() && tokens[i - 1].IsDigit();
      if ((command && IsLetter(token.text[0])) || (numbers && !JoinsThousands(tokens, i))) {
        text += ' ';
      }
    }
    text += token.text;
  }
  return text;
}

bool TakeAround(std::string_view* text, std::string_view mark) {
  const bool both = text->size() >= 2 * mark.size() && text->substr(0, mark.size()) == mark &&
                    text->substr(text->size() - mark.size()) == mark;
  if (both) *text = text->substr(mark.size(), text->size() - 2 * mark.size());
  return both;
}

// "]2,3[" is (2,3).
void WriteOpenEnds(std::string* text) {
  const bool interval = text->size() > 4 && text->find(',') != text->npos &&
                        (text->front() == ']' || text->front() == '[') &&
                        (text->back() == ']' || text->back() == '[');
  if (!interval) return;
  if (text->front() == ']') text->front() = '(';
  if (text->back() == '[') text->back() = ')';
}

// Whether the whole is one \text{...} of letters.
bool IsTextWord(std::string_view text) {
  while (TakeAround(&text, "$")) {
  }
  const size_t open = text.find('{');
  if (open == std::string_view::npos || open < 2 || text[0] != '\\' || text.back() != '}') {
    return false;
  }
  const std::string_view word = text.substr(open + 1, text.size() - open - 2);
  return Contains(kTextCommands, text.substr(1, open - 1)) &&
         std::all_of(word.begin(), word.end(), IsLetter);
}

}  // namespace

NormalizedAnswer NormalizeAnswer(std::string_view answer) {
  const std::string plain = PlainMarkup(answer.substr(0, kMaxNormalizedLength));
  std::string_view text = plain;
  while (!text.empty() && IsBlank(text.front())) text.remove_prefix(1);
  while (!text.empty() && IsBlank(text.back())) text.remove_suffix(1);
  while (TakeAround(&text, "**")) {
  }
  TrailingUnit trailing = TakeTrailingUnit(text);
  NormalizedAnswer result;
  result.quantity = std::move(trailing.quantity);
  result.is_word = IsTextWord(text);
  std::vector<Token> tokens;
  std::string_view currency;
  Lexer(trailing.rest, 0, &tokens, &currency).Run();
  if (!currency.empty()) result.quantity.unit = WithCurrency(currency, result.quantity.unit);
  JoinBracedCommas(&tokens);
  RemoveThousandsSeparators(&tokens);
  MarkJunctions(&tokens);
  result.text = Write(tokens);
  WriteOpenEnds(&result.text);
  return result;
}

}  // namespace pmkvq
