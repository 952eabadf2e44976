#include "pmkvq/eval/answer.h"

#include <algorithm>
#include <cctype>

namespace pmkvq {
namespace {

constexpr std::string_view kBlanks = " \t\r\n";

std::string_view Trim(std::string_view text, std::string_view characters = kBlanks) {
  const size_t begin = text.find_first_not_of(characters);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(characters) - begin + 1);
}

// The content of the group that opens at `open`; nothing when it is not closed. A brace behind a
// backslash is a character of the formula, not a group.
std::optional<std::string_view> GroupAt(std::string_view text, size_t open) {
  int depth = 0;
  for (size_t i = open; i < text.size(); ++i) {
    if (text[i] == '\\') {
      ++i;
    } else if (text[i] == '{') {
      ++depth;
    } else if (text[i] == '}' && --depth == 0) {
      return text.substr(open + 1, i - open - 1);
    }
  }
  return std::nullopt;
}

// The start of the last `command` that has a group; its brace is put into `open`.
bool FindLastCommand(std::string_view text, std::string_view command, size_t* open) {
  size_t end = std::string_view::npos;
  while (true) {
    const size_t at = text.rfind(command, end);
    if (at == std::string_view::npos) return false;
    *open = text.find_first_not_of(kBlanks, at + command.size());
    if (*open != std::string_view::npos && text[*open] == '{') return true;
    if (at == 0) return false;
    end = at - 1;
  }
}

std::string LowerCase(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return lower;
}

// The end of the phrase "answer is", "answer:" or "answer =" that starts at `at`; npos when what
// stands there is another use of the word.
size_t PhraseEnd(std::string_view lower, size_t at) {
  constexpr std::string_view kDecoration = " \t*_";
  size_t i = lower.find_first_not_of(kDecoration, at + std::string_view("answer").size());
  if (i == std::string_view::npos) return i;
  const bool is = lower.substr(i, 2) == "is" && i + 2 < lower.size() &&
                  std::isalnum(static_cast<unsigned char>(lower[i + 2])) == 0;
  if (!is && lower[i] != ':' && lower[i] != '=') return std::string_view::npos;
  i = lower.find_first_not_of(kDecoration, i + (is ? 2 : 1));
  if (is && i != std::string_view::npos && lower[i] == ':') ++i;
  return i;
}

// The formula that `text` starts with, without its delimiters; nothing when it starts otherwise.
std::optional<std::string_view> LeadingFormula(std::string_view text) {
  constexpr std::string_view kDelimiters[][2] = {
      {"$$", "$$"}, {"$", "$"}, {"\\(", "\\)"}, {"\\[", "\\]"}};
  for (const auto& [open, close] : kDelimiters) {
    if (text.substr(0, open.size()) != open) continue;
    const size_t end = text.find(close, open.size());
    if (end == std::string_view::npos) continue;
    return text.substr(open.size(), end - open.size());
  }
  return std::nullopt;
}

// `text` up to the end of its first line or sentence. A point inside a number ends none.
std::string_view FirstSentence(std::string_view text) {
  for (size_t i = 0; i < text.size(); ++i) {
    const bool last = i + 1 == text.size() || kBlanks.find(text[i + 1]) != std::string_view::npos;
    if (text[i] == '\n' || (text[i] == '.' && last)) return text.substr(0, i);
  }
  return text;
}

std::optional<std::string> ExtractStatedAnswer(std::string_view text) {
  const std::string lower = LowerCase(text);
  size_t end = std::string::npos;
  while (true) {
    const size_t at = lower.rfind("answer", end);
    if (at == std::string::npos) return std::nullopt;
    const size_t begin = PhraseEnd(lower, at);
    if (begin != std::string::npos) {
      const std::string_view rest = Trim(text.substr(begin), " \t\r\n*_");
      const std::optional<std::string_view> formula = LeadingFormula(rest);
      const std::string_view answer =
          formula ? Trim(*formula) : Trim(FirstSentence(rest), " \t\r\n*");
      if (!answer.empty()) return std::string(answer);
    }
    if (at == 0) return std::nullopt;
    end = at - 1;
  }
}

}  // namespace

std::optional<std::string> ExtractBoxedAnswer(std::string_view text) {
  size_t open = 0;
  if (!FindLastCommand(text, "\\boxed", &open) && !FindLastCommand(text, "\\fbox", &open)) {
    return std::nullopt;
  }
  const std::optional<std::string_view> content = GroupAt(text, open);
  if (!content) return std::nullopt;
  return std::string(Trim(*content));
}

std::optional<std::string> ExtractAnswer(std::string_view text) {
  std::optional<std::string> boxed = ExtractBoxedAnswer(text);
  return boxed ? boxed : ExtractStatedAnswer(text);
}

std::string ExtractGold(std::string_view gold) {
  constexpr std::string_view kMarker = "####";
  const size_t marker = gold.rfind(kMarker);
  if (marker != std::string_view::npos) {
    return std::string(Trim(gold.substr(marker + kMarker.size())));
  }
  return ExtractBoxedAnswer(gold).value_or(std::string(Trim(gold)));
}

}  // namespace pmkvq
