#include "pmkvq/research/judge/answer_stated.h"

#include <algorithm>
#include <cctype>
#include <iterator>
#include <vector>

#include "pmkvq/base/strings.h"

namespace pmkvq {
namespace {

constexpr std::string_view kBlanks = " \t\r\n";
constexpr size_t kMaxSentence = 4096;

// Between the word "answer" and its value.
constexpr std::string_view kAdverbs[] = {
    "therefore", "thus",     "then",          "hence",     "simply",    "just",      "exactly",
    "clearly",   "indeed",   "now",           "obviously", "actually",  "so",        "also",
    "precisely", "equal to", "given by",      "in fact",   "evidently", "of course", "finally",
    "only",      "always",   "approximately", "about",     "roughly",   "around"};

// Words that begin a clause behind the value.
constexpr std::string_view kClauses[] = {
    "because", "since",   "therefore",   "thus",       "hence",      "which",       "whereas",
    "where",   "when",    "while",       "rather",     "instead",    "but",         "if",
    "i.e.",    "i.e",     "e.g.",        "that is",    "so that",    "not",         "although",
    "though",  "and not", "as required", "as desired", "as claimed", "as expected", "as needed"};
// The same only behind a number, or behind a comma.
constexpr std::string_view kWeakClauses[] = {"as",    "so",   "by",      "from",  "using",
                                             "after", "for",  "with",    "being", "giving",
                                             "to",    "that", "in order"};
// Verbs: a clause behind "and" that has one is no part of a list.
constexpr std::string_view kVerbs[] = {"is", "are",  "was",  "were", "be",  "has",  "have", "we",
                                       "it", "this", "that", "I",    "the", "done", "left"};
// Adjectives that are no answers: "this answer is helpful".
constexpr std::string_view kJudgements[] = {
    "helpful", "correct",    "right",      "wrong", "clear",     "unique", "reasonable",
    "valid",   "as follows", "consistent", "final", "incorrect", "good"};

template <class Range>
bool Contains(const Range& range, std::string_view value) {
  return std::find(std::begin(range), std::end(range), value) != std::end(range);
}

bool IsLetter(char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0; }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsBlank(char c) { return kBlanks.find(c) != std::string_view::npos; }

std::string LowerCase(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return lower;
}

// Whether the word at `at` is exactly `word`.
bool WordAt(std::string_view text, size_t at, std::string_view word) {
  const size_t end = at + word.size();
  return text.substr(at, word.size()) == word && (end >= text.size() || !IsLetter(text[end]));
}

// The end of the phrase "answer is", "answer:" or "answer =" whose word starts at `at`; npos where
// the word is used otherwise. ", therefore," and "to the problem" may come between.
size_t PhraseEnd(std::string_view lower, size_t at) {
  constexpr std::string_view kDecoration = " \t*_";
  size_t i = lower.find_first_not_of(kDecoration, at + std::string_view("answer").size());
  if (i == std::string_view::npos) return i;
  for (const std::string_view between :
       {", therefore, ", ", then, ", ", thus, ", ", hence, ", "to the problem ", "to the question ",
        "to this problem ", "to this question ", "here ", "therefore ", "then "}) {
    const size_t begin = between[0] == ',' ? i : i;
    if (lower.substr(begin, between.size()) == between) {
      i = begin + between.size();
      break;
    }
  }
  const bool is = lower.substr(i, 2) == "is" && i + 2 < lower.size() &&
                  std::isalnum(static_cast<unsigned char>(lower[i + 2])) == 0;
  if (!is && lower[i] != ':' && lower[i] != '=') return std::string_view::npos;
  i = lower.find_first_not_of(kDecoration, i + (is ? 2 : 1));
  if (is && i != std::string_view::npos && lower[i] == ':') ++i;
  return i;
}

std::string_view WithoutAdverbs(std::string_view text) {
  constexpr std::string_view kBetween = " \t\r\n,:*_";
  for (bool found = true; found;) {
    found = false;
    const std::string_view rest = Trim(text, kBetween).empty()
                                      ? std::string_view()
                                      : text.substr(text.find_first_not_of(kBetween));
    const std::string lower = LowerCase(rest.substr(0, 16));
    for (const std::string_view adverb : kAdverbs) {
      if (WordAt(lower, 0, adverb) && rest.size() > adverb.size()) {
        text = rest.substr(adverb.size());
        found = true;
        break;
      }
    }
  }
  const size_t begin = text.find_first_not_of(kBetween);
  return begin == std::string_view::npos ? std::string_view() : text.substr(begin);
}

// `close` in `text` from `at` on, not behind a backslash.
size_t FindClose(std::string_view text, std::string_view close, size_t at) {
  while (true) {
    const size_t found = text.find(close, at);
    if (found == std::string_view::npos || close[0] == '\\' || found == 0 ||
        text[found - 1] != '\\') {
      return found;
    }
    at = found + 1;
  }
}

// Whether the text between two dollar signs is prose about money: "18 per day, and ".
bool IsProse(std::string_view content, char behind) {
  if (IsDigit(behind)) return true;
  if (!content.empty() && IsBlank(content.back()) && IsDigit(content[0])) return true;
  // A word between blanks, outside of commands.
  int letters = 0;
  for (size_t i = 0; i < content.size(); ++i) {
    if (content[i] == '\\' || content[i] == '{') return false;
    letters = IsLetter(content[i]) ? letters + 1 : 0;
    if (letters >= 4) return true;
  }
  return false;
}

// The formula that `text` starts with, without its delimiters, and where it ends.
struct Formula {
  std::string_view content;
  size_t end = 0;
};
std::optional<Formula> LeadingFormula(std::string_view text) {
  constexpr std::string_view kDelimiters[][2] = {
      {"$$", "$$"}, {"$", "$"}, {"\\(", "\\)"}, {"\\[", "\\]"}};
  for (const auto& [open, close] : kDelimiters) {
    if (text.substr(0, open.size()) != open) continue;
    const size_t end = FindClose(text.substr(0, kMaxSentence), close, open.size());
    if (end == std::string_view::npos) continue;
    const std::string_view content = text.substr(open.size(), end - open.size());
    const size_t behind = end + close.size();
    if (Trim(content).empty()) continue;
    if (open == "$" && IsProse(content, behind < text.size() ? text[behind] : '\0')) continue;
    return Formula{Trim(content), behind};
  }
  return std::nullopt;
}

// Formulas joined by commas, "and" and "or".
std::string FormulaList(std::string_view text, const Formula& first) {
  std::string list(first.content);
  size_t at = first.end;
  while (true) {
    const size_t begin = text.find_first_not_of(" \t,", at);
    if (begin == std::string_view::npos) return list;
    size_t next = begin;
    for (const std::string_view word : {"and ", "or "}) {
      if (text.substr(begin, word.size()) == word) next = begin + word.size();
    }
    if (next == at) return list;
    const std::optional<Formula> formula = LeadingFormula(text.substr(next));
    if (!formula) return list;
    list += ", " + std::string(formula->content);
    at = next + formula->end;
  }
}

// `text` up to the end of its first line or sentence. A point inside a number or an abbreviation
// ends none.
std::string_view FirstSentence(std::string_view text) {
  text = text.substr(0, kMaxSentence);
  for (size_t i = 0; i < text.size(); ++i) {
    const bool last = i + 1 == text.size() || IsBlank(text[i + 1]);
    if (text[i] == '\n') return text.substr(0, i);
    if (text[i] != '.' || !last) continue;
    const bool abbreviation = i >= 2 && text[i - 2] == '.' && IsLetter(text[i - 1]);  // "p.m."
    const bool choice = i == 1 && IsLetter(text[0]);                                  // "E. text"
    if (!abbreviation && !choice) return text.substr(0, i);
    if (i + 1 == text.size()) return text.substr(0, choice ? i : i + 1);
    if (abbreviation && i + 2 < text.size() && text[i + 2] >= 'A' && text[i + 2] <= 'Z') {
      return text.substr(0, i + 1);
    }
  }
  return text;
}

// Whether the text behind "and" continues a list of values.
bool ContinuesList(std::string_view text) {
  std::vector<std::string_view> words;
  size_t begin = 0;
  while (begin < text.size()) {
    const size_t end = std::min(text.find_first_of(" ,;", begin), text.size());
    if (end > begin) words.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return !words.empty() && std::none_of(words.begin(), words.end(), [](std::string_view word) {
    return Contains(kVerbs, word);
  });
}

// A dash between blanks: an em or en dash, or a hyphen that a word follows.
bool IsDash(std::string_view text) {
  const bool wide = text.substr(0, 3) == "\u2013" || text.substr(0, 3) == "\u2014";
  if (wide) return text.size() == 3 || IsBlank(text[3]);
  return text.size() > 4 && text[0] == '-' && IsBlank(text[1]) && IsLetter(text[2]) &&
         IsLetter(text[3]) && IsLetter(text[4]);
}

// The value at the start of a sentence, without the clauses behind it.
std::string_view WithoutClauses(std::string_view sentence) {
  const bool number = !sentence.empty() && (IsDigit(sentence[0]) || sentence[0] == '$' ||
                                            sentence[0] == '-' || sentence[0] == '\\');
  int depth = 0;
  for (size_t i = 0; i < sentence.size(); ++i) {
    const char c = sentence[i];
    if (c == '(' || c == '[' || c == '{') {
      // "42 (see above)"
      const bool remark = depth == 0 && c == '(' && i > 0 && IsBlank(sentence[i - 1]) && number &&
                          i + 3 < sentence.size() && IsLetter(sentence[i + 1]) &&
                          IsLetter(sentence[i + 2]) && IsLetter(sentence[i + 3]) &&
                          sentence.substr(i + 1, 3) != "mod";
      if (remark) return sentence.substr(0, i);
      ++depth;
    }
    if (c == ')' || c == ']' || c == '}') --depth;
    if (depth > 0 || i == 0) continue;
    if (c == ';') return sentence.substr(0, i);
    if (number && c == ':' && i + 1 < sentence.size() && IsBlank(sentence[i + 1])) {
      return sentence.substr(0, i);
    }
    if (IsBlank(sentence[i - 1]) && IsDash(sentence.substr(i))) return sentence.substr(0, i);
    const bool word = IsBlank(sentence[i - 1]) && IsLetter(c);
    if (!word) continue;
    const size_t last = sentence.find_last_not_of(kBlanks, i - 1);
    const bool comma = last != std::string_view::npos && sentence[last] == ',';
    const auto stands = [&](std::string_view w) { return WordAt(sentence, i, w); };
    if (std::any_of(std::begin(kClauses), std::end(kClauses), stands)) return sentence.substr(0, i);
    if ((number || comma) &&
        std::any_of(std::begin(kWeakClauses), std::end(kWeakClauses), stands)) {
      return sentence.substr(0, i);
    }
    if (stands("and") && !ContinuesList(sentence.substr(i + 3))) return sentence.substr(0, i);
  }
  return sentence;
}

// Quoting and emphasis marks around a value.
std::string_view WithoutQuotes(std::string_view text) {
  constexpr std::string_view kPairs[][2] = {
      {"\u201c", "\u201d"}, {"\u2018", "\u2019"}, {"\u00ab", "\u00bb"}, {"``", "''"}, {"``", "``"},
      {"`", "`"},           {"\"", "\""},         {"'", "'"},           {"**", "**"}};
  for (bool found = true; found;) {
    found = false;
    text = Trim(text, " \t\r\n*");
    for (const auto& [open, close] : kPairs) {
      if (text.substr(0, open.size()) != open) continue;
      const size_t end = text.find(close, open.size());
      if (end == std::string_view::npos || end == open.size()) continue;
      text = text.substr(open.size(), end - open.size());
      found = true;
      break;
    }
  }
  return text;
}

// The answer that `text` starts with; "" for none.
std::string AnswerAt(std::string_view text) {
  text = WithoutAdverbs(text);
  if (const std::optional<Formula> formula = LeadingFormula(text)) {
    return FormulaList(text, *formula);
  }
  const std::string_view sentence = FirstSentence(text);
  std::string_view value = WithoutQuotes(sentence);
  const bool quoted = value.data() > sentence.data() && value.size() + 1 < sentence.size();
  if (const std::optional<Formula> formula = LeadingFormula(value)) {
    return FormulaList(value, *formula);
  }
  value = WithoutClauses(value);
  value = Trim(value, " \t\r\n*_,;:-");
  // Keep the sign of a number that Trim took.
  const size_t begin = static_cast<size_t>(value.data() - text.data());
  if (!value.empty() && begin > 0 && text[begin - 1] == '-' && !quoted) {
    value = text.substr(begin - 1, value.size() + 1);
  }
  // An exclamation behind a sentence.
  if (value.size() > 1 && value.back() == '!') value.remove_suffix(1);
  const std::string lower = LowerCase(value);
  if (Contains(kJudgements, lower)) return "";
  return std::string(value);
}

}  // namespace

std::optional<std::string> ExtractStatedAnswer(std::string_view text) {
  const std::string lower = LowerCase(text);
  size_t end = std::string::npos;
  while (true) {
    const size_t at = lower.rfind("answer", end);
    if (at == std::string::npos) return std::nullopt;
    const size_t begin = PhraseEnd(lower, at);
    if (begin != std::string::npos) {
      std::string answer = AnswerAt(text.substr(begin).substr(0, 2 * kMaxSentence));
      if (!answer.empty()) return answer;
    }
    if (at == 0) return std::nullopt;
    end = at - 1;
  }
}

}  // namespace pmkvq
