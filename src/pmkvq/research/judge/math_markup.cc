#include "pmkvq/research/judge/math_markup.h"

#include <algorithm>
#include <cctype>
#include <iterator>
#include <utility>

#include "pmkvq/research/judge/math_tokens.h"

namespace pmkvq {
namespace {

constexpr int kMaxInfix = 64;
constexpr int kMaxNesting = 8;
constexpr size_t kMaxLead = 16;  // Signs and blanks before the number of a text.

using Renaming = std::pair<std::string_view, std::string_view>;

constexpr Renaming kUnicode[] = {{"\u2212", "-"},
                                 {"\u2013", "-"},
                                 {"\u2014", "-"},
                                 {"\u00d7", "*"},
                                 {"\u00b7", "*"},
                                 {"\u22c5", "*"},
                                 {"\u00f7", "/"},
                                 {"\u2044", "/"},
                                 {"\u2215", "/"},
                                 {"\u03c0", "\\pi "},
                                 {"\u221a", "\\sqrt "},
                                 {"\u221e", "\\infty "},
                                 {"\u00b0", "^\\circ "},
                                 {"\u222a", "\\cup "},
                                 {"\u2229", "\\cap "},
                                 {"\u2264", "\\le "},
                                 {"\u2a7d", "\\le "},
                                 {"\u2265", "\\ge "},
                                 {"\u2a7e", "\\ge "},
                                 {"\u2260", "\\ne "},
                                 {"\u00b1", "\\pm "},
                                 {"\u2213", "\\mp "},
                                 {"\u2248", "\\approx "},
                                 {"\u2208", "\\in "},
                                 {"\u211d", "\\mathbb{R}"},
                                 {"\u2228", "\\lor "},
                                 {"\u2227", "\\land "},
                                 {"\u2220", "\\angle "},
                                 {"\u25b3", "\\triangle "},
                                 {"\u03b1", "\\alpha "},
                                 {"\u03b2", "\\beta "},
                                 {"\u03b3", "\\gamma "},
                                 {"\u03b4", "\\delta "},
                                 {"\u03bb", "\\lambda "},
                                 {"\u03bc", "\\mu "},
                                 {"\u03c3", "\\sigma "},
                                 {"\u03c6", "\\phi "},
                                 {"\u03c9", "\\omega "},
                                 {"\u03b8", "\\theta "},
                                 {"\u00b9", "^1"},
                                 {"\u00b2", "^2"},
                                 {"\u00b3", "^3"},
                                 {"\u2074", "^4"},
                                 {"\u2075", "^5"},
                                 {"\u207f", "^n"},
                                 {"\u00a0", " "},
                                 {"\u2009", " "},
                                 {"\u202f", " "},
                                 {"\u3000", " "},
                                 {"\u200b", ""},
                                 {"\u2205", "\\emptyset "},
                                 {"\u230a", "\\lfloor "},
                                 {"\u230b", "\\rfloor "},
                                 {"\u2308", "\\lceil "},
                                 {"\u2309", "\\rceil "},
                                 {"\u2026", "\\dots "},
                                 {"\u22ef", "\\dots "},
                                 {"\u20ac", "\\euro "},
                                 {"\u00a3", "\\pounds "},
                                 {"\u00a5", "\\yen "},
                                 {"\uffe5", "\\yen "},
                                 {"\u20b9", "\\rupee "},
                                 {"\u20a9", "\\won "},
                                 {"\u20bd", "\\rouble "},
                                 {"\u201c", "\""},
                                 {"\u201d", "\""},
                                 {"\u2018", "'"},
                                 {"\u2019", "'"},
                                 {"\u2032", "'"},
                                 {"\u3001", ","},
                                 {"\u3002", "."},
                                 {"\u00bd", "\\frac{1}{2}"},
                                 {"\u00bc", "\\frac{1}{4}"},
                                 {"\u00be", "\\frac{3}{4}"},
                                 {"\u2153", "\\frac{1}{3}"},
                                 {"\u2154", "\\frac{2}{3}"},
                                 {"\u2155", "\\frac{1}{5}"},
                                 {"\u2156", "\\frac{2}{5}"},
                                 {"\u2157", "\\frac{3}{5}"},
                                 {"\u2158", "\\frac{4}{5}"},
                                 {"\u2159", "\\frac{1}{6}"},
                                 {"\u215a", "\\frac{5}{6}"},
                                 {"\u215b", "\\frac{1}{8}"},
                                 {"\u215c", "\\frac{3}{8}"},
                                 {"\u215d", "\\frac{5}{8}"},
                                 {"\u215e", "\\frac{7}{8}"}};

// Commands with arguments: how many are dropped in front of the one that is kept, if any is.
struct Wrapper {
  std::string_view name;
  int dropped;
  bool keeps;
};
constexpr Wrapper kWrappers[] = {
    {"textcolor", 1, true},  {"color", 1, false},     {"colorbox", 1, true}, {"fcolorbox", 2, true},
    {"hspace", 1, false},    {"vspace", 1, false},    {"phantom", 1, false}, {"hphantom", 1, false},
    {"vphantom", 1, false},  {"mspace", 1, false},    {"label", 1, false},   {"tag", 1, false},
    {"ensuremath", 0, true}, {"framebox", 0, true},   {"fbox", 0, true},     {"boxed", 0, true},
    {"raisebox", 1, true},   {"underbrace", 0, true}, {"smash", 0, true},    {"cancel", 0, true}};

constexpr std::string_view kTextCommands[] = {"text",   "textrm", "textnormal", "textit", "textbf",
                                              "mbox",   "hbox",   "mathrm",     "texttt", "textsf",
                                              "mathbf", "mathit", "mathsf"};

template <class Range>
bool Contains(const Range& range, std::string_view value) {
  return std::find(std::begin(range), std::end(range), value) != std::end(range);
}

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

// Whether a combining mark starts at `at`: a bar or a dot over the digit before it.
std::string_view CombiningMark(std::string_view text, size_t at) {
  const std::string_view mark = text.substr(at, 2);
  if (mark == "\u0305" || mark == "\u0304") return "\\overline";
  if (mark == "\u0307") return "\\dot";
  return {};
}

std::string ReplaceUnicode(std::string_view text) {
  std::string result;
  for (size_t i = 0; i < text.size();) {
    const std::string_view mark = CombiningMark(text, i);
    if (!mark.empty() && !result.empty() && IsDigit(result.back())) {
      const char digit = result.back();
      result.back() = mark[0];
      result += std::string(mark.substr(1)) + "{" + digit + "}";
      i += 2;
      continue;
    }
    // U+FF01 to U+FF5E: ASCII in full width.
    if (i + 2 < text.size() && text[i] == '\xef') {
      const auto second = static_cast<unsigned char>(text[i + 1]);
      const auto third = static_cast<unsigned char>(text[i + 2]);
      const int code = (second - 0xbc) * 64 + (third - 0x80);
      if (second >= 0xbc && second <= 0xbd && third >= 0x80 && code >= 1 && code <= 0x5e) {
        result += static_cast<char>(0x20 + code);
        i += 3;
        continue;
      }
    }
    const auto* found = std::end(kUnicode);
    if (static_cast<unsigned char>(text[i]) >= 0x80) {
      found = std::find_if(std::begin(kUnicode), std::end(kUnicode), [&](const Renaming& entry) {
        return text.substr(i, entry.first.size()) == entry.first;
      });
    }
    if (found != std::end(kUnicode)) {
      result += found->second;
      i += found->first.size();
    } else if (text.substr(i, 3) == "...") {
      result += "\\dots ";
      i += 3;
    } else {
      result += text[i++];
    }
  }
  return result;
}

size_t SkipBlanks(std::string_view text, size_t at) {
  while (at < text.size() && (text[at] == ' ' || text[at] == '\n' || text[at] == '\t')) ++at;
  return at;
}

// A text that begins with a number, behind a currency sign or an opening bracket at most.
bool BeginsWithNumber(std::string_view text) {
  for (const char c : text) {
    if (IsDigit(c)) return true;
    if (std::string_view(" ~$-+.([").find(c) == std::string_view::npos && c != '\\') return false;
  }
  return false;
}

class Unwrapper {
 public:
  std::string Run(std::string_view text, int depth = 0) {
    std::string result;
    for (size_t i = 0; i < text.size();) {
      if (text[i] != '\\') {
        result += text[i++];
        continue;
      }
      size_t end = i + 1;
      while (end < text.size() && IsLetter(text[end])) ++end;
      const std::string_view name = text.substr(i + 1, end - i - 1);
      if (name.empty()) {
        // An escaped character.
        result += text.substr(i, 2);
        i += 2;
      } else if (depth < kMaxNesting && Wrapped(text, name, end, depth, &result)) {
        i = end_;
      } else {
        result += text.substr(i, end - i);
        i = end;
      }
    }
    return result;
  }

 private:
  // Appends the plain text of the arguments of the command `name`, which start at `at`; sets end_.
  bool Wrapped(std::string_view text, std::string_view name, size_t at, int depth,
               std::string* result) {
    if (Contains(kTextCommands, name)) {
      const size_t open = SkipBlanks(text, at);
      if (open >= text.size() || text[open] != '{') return false;
      // Looked at first: finding the end of every group of a long text would be slow.
      const std::string_view begin = text.substr(open + 1, kMaxLead);
      if (!BeginsWithNumber(begin) && begin.substr(0, 5) != "\\frac") return false;
      const size_t close = GroupEnd(text, open);
      if (close == text.npos) return false;
      const std::string_view content = text.substr(open + 1, close - open - 2);
      *result += Run(content, depth + 1);
      end_ = close;
      return true;
    }
    const auto* wrapper = std::find_if(std::begin(kWrappers), std::end(kWrappers),
                                       [&](const Wrapper& w) { return w.name == name; });
    if (wrapper == std::end(kWrappers)) return false;
    if (at < text.size() && text[at] == '*') ++at;
    for (int i = 0; i < wrapper->dropped; ++i) {
      const size_t open = SkipBlanks(text, at);
      if (open >= text.size() || text[open] != '{') return false;
      at = GroupEnd(text, open);
      if (at == text.npos) return false;
    }
    end_ = at;
    if (!wrapper->keeps) return true;
    const size_t open = SkipBlanks(text, at);
    if (open >= text.size() || text[open] != '{') return true;
    const size_t close = GroupEnd(text, open);
    if (close == text.npos) return true;
    const std::string content = Run(text.substr(open + 1, close - open - 2), depth + 1);
    const bool braces = std::any_of(content.begin(), content.end(), [](char c) {
      return std::string_view("+-*/^_").find(c) != std::string_view::npos;
    });
    *result += braces ? "{" + content + "}" : content;
    end_ = close;
    return true;
  }

  size_t end_ = 0;
};

// The bounds of the group around `at`: behind its opening and at its closing bracket.
std::pair<size_t, size_t> GroupAround(std::string_view text, size_t at) {
  size_t begin = at;
  for (int depth = 0; begin > 0; --begin) {
    const char c = text[begin - 1];
    const bool escaped = begin > 1 && text[begin - 2] == '\\' && (c == '{' || c == '}');
    if ((c == '}' || c == ')' || c == ']') && !escaped) ++depth;
    if ((c == '{' || c == '(' || c == '[') && !escaped && --depth < 0) break;
    if (depth == 0 && (c == '=' || c == ',')) break;
  }
  size_t end = at;
  for (int depth = 0; end < text.size(); ++end) {
    const char c = text[end];
    const bool escaped = end > 0 && text[end - 1] == '\\' && (c == '{' || c == '}');
    if ((c == '{' || c == '(' || c == '[') && !escaped) ++depth;
    if ((c == '}' || c == ')' || c == ']') && !escaped && --depth < 0) break;
    if (depth == 0 && (c == '=' || c == ',')) break;
  }
  return {begin, end};
}

// {a \over b} is \frac{a}{b}.
std::string ReplaceInfix(std::string text, std::string_view infix, std::string_view prefix) {
  size_t from = 0;
  for (int i = 0; i < kMaxInfix; ++i) {
    const size_t at = text.find(infix, from);
    if (at == std::string::npos) break;
    const size_t behind = at + infix.size();
    if (behind < text.size() && IsLetter(text[behind])) {
      from = behind;
      continue;
    }
    const auto [begin, end] = GroupAround(text, at);
    std::string left = text.substr(begin, at - begin);
    std::string right = text.substr(behind, end - behind);
    // A closing \right belongs to the bracket.
    std::string tail;
    constexpr std::string_view kRight = "\\right";
    if (right.size() >= kRight.size() && right.substr(right.size() - kRight.size()) == kRight) {
      right.resize(right.size() - kRight.size());
      tail = kRight;
    }
    const std::string replaced = std::string(prefix) + "{" + left + "}{" + right + "}" + tail;
    text.replace(begin, end - begin, replaced);
    from = begin + prefix.size();
  }
  return text;
}

void ReplaceAll(std::string* text, std::string_view from, std::string_view to) {
  for (size_t at = text->find(from); at != text->npos; at = text->find(from, at + to.size())) {
    text->replace(at, from.size(), to);
  }
}

// "7 p.m." is 7 pm.
void ReplaceTimesOfDay(std::string* text) {
  for (const auto& [from, to] :
       {Renaming("a.m.", "am"), Renaming("p.m.", "pm"), Renaming("A.M.", "am"),
        Renaming("P.M.", "pm"), Renaming("a.m", "am"), Renaming("p.m", "pm")}) {
    const size_t at = text->find(from);
    const bool word = at != text->npos && at > 0 && !IsLetter((*text)[at - 1]);
    if (word) text->replace(at, from.size(), to);
  }
}

void DropPrefix(std::string* text) {
  const size_t begin = text->find_first_not_of(" \t\r\n");
  if (begin == text->npos) return;
  for (const std::string_view prefix :
       {"\\text{The answer is }", "\\text{The answer is}", "The answer is ", "\\text{Answer: }"}) {
    if (text->compare(begin, prefix.size(), prefix) == 0 && text->size() > begin + prefix.size()) {
      text->erase(0, begin + prefix.size());
      return;
    }
  }
  constexpr Renaming kCodes[] = {{"Rs.", "\\rupee "},  {"Rs ", "\\rupee "},   {"EUR ", "\\euro "},
                                 {"USD ", "\\$"},      {"GBP ", "\\pounds "}, {"JPY ", "\\yen "},
                                 {"INR ", "\\rupee "}, {"CHF ", "\\franc "}};
  for (const auto& [code, command] : kCodes) {
    if (text->compare(begin, code.size(), code) == 0) {
      text->replace(begin, code.size(), command);
      return;
    }
  }
}

}  // namespace

size_t GroupEnd(std::string_view text, size_t open) {
  int depth = 0;
  for (size_t i = open; i < text.size(); ++i) {
    if (text[i] == '\\') {
      ++i;
    } else if (text[i] == '{') {
      ++depth;
    } else if (text[i] == '}' && --depth == 0) {
      return i + 1;
    }
  }
  return std::string_view::npos;
}

std::string PlainMarkup(std::string_view answer) {
  std::string text = ReplaceUnicode(answer);
  DropPrefix(&text);
  text = Unwrapper().Run(text);
  text = ReplaceInfix(std::move(text), "\\over", "\\frac");
  text = ReplaceInfix(std::move(text), "\\choose", "\\binom");
  ReplaceAll(&text, "US\\$", "\\$");
  ReplaceAll(&text, "US$", "$");
  ReplaceTimesOfDay(&text);
  return text;
}

}  // namespace pmkvq
