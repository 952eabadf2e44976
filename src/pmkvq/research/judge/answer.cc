#include "pmkvq/research/judge/answer.h"

#include <algorithm>
#include <cctype>
#include <iterator>

#include "pmkvq/base/strings.h"
#include "pmkvq/research/judge/answer_stated.h"
#include "pmkvq/research/judge/math_equivalence.h"
#include "pmkvq/research/judge/math_markup.h"

namespace pmkvq {
namespace {

constexpr std::string_view kBlanks = " \t\r\n";
constexpr size_t kMaxBoxes = 64;

// The content of the group that opens at `open`; nothing when it is not closed.
std::optional<std::string_view> GroupAt(std::string_view text, size_t open) {
  const size_t end = GroupEnd(text, open);
  if (end == std::string_view::npos) return std::nullopt;
  return text.substr(open + 1, end - open - 2);
}

struct Box {
  size_t begin = 0;  // Of its command.
  size_t end = 0;    // Behind it.
  std::string_view content;
};

// What "\boxed 5" takes without braces: a number, a letter or a command with its groups.
std::string_view BareContent(std::string_view text, size_t at) {
  size_t end = at;
  if (text[end] == '-' || text[end] == '+') ++end;
  const size_t begin = end;
  while (end < text.size() && (std::isdigit(static_cast<unsigned char>(text[end])) != 0 ||
                               text[end] == '.' || text[end] == ',')) {
    ++end;
  }
  if (end == begin && end < text.size() && text[end] == '\\') {
    ++end;
    while (end < text.size() && std::isalpha(static_cast<unsigned char>(text[end])) != 0) ++end;
    while (end < text.size() && text[end] == '{') {
      const std::optional<std::string_view> group = GroupAt(text, end);
      if (!group) return {};
      end += group->size() + 2;
    }
    while (end < text.size() && std::isdigit(static_cast<unsigned char>(text[end])) != 0) ++end;
    return text.substr(at, end - at);
  }
  while (end > begin && (text[end - 1] == '.' || text[end - 1] == ',')) --end;
  if (end > begin) return text.substr(at, end - at);
  // One letter, if no word follows.
  const bool letter =
      std::isupper(static_cast<unsigned char>(text[at])) != 0 &&
      (at + 1 == text.size() || std::isalpha(static_cast<unsigned char>(text[at + 1])) == 0);
  return letter ? text.substr(at, 1) : std::string_view();
}

// The last box of `command` that begins before `limit` and has a content; an open group has none.
std::optional<Box> LastBox(std::string_view text, std::string_view command, size_t limit) {
  while (limit > 0) {
    const size_t at = text.rfind(command, limit - 1);
    if (at == std::string_view::npos) return std::nullopt;
    limit = at;
    const size_t behind = at + command.size();
    const size_t open = text.find_first_not_of(kBlanks, behind);
    if (open == std::string_view::npos) continue;
    if (text[open] == '{') {
      const std::optional<std::string_view> content = GroupAt(text, open);
      return Box{at, content ? open + content->size() + 2 : std::string_view::npos,
                 content.value_or(std::string_view())};
    }
    const std::string_view content = BareContent(text, open);
    const bool other_command = std::isalpha(static_cast<unsigned char>(text[behind])) != 0;
    if (!content.empty() && !other_command) return Box{at, open + content.size(), content};
  }
  return std::nullopt;
}

// Whether `between` joins two boxes to one list: blanks, commas, "and", "or", math delimiters,
// "x =".
bool JoinsBoxes(std::string_view between) {
  constexpr size_t kLongest = 60;
  constexpr std::string_view kJoining[] = {"and", "or",  "\\text",   "\\quad",  "\\qquad", "\\\\",
                                           "\\,", "\\;", "\\ ",      "\\(",     "\\)",     "\\[",
                                           "\\]", "\\!", "\\mathrm", "\\textbf"};
  if (between.size() > kLongest) return false;
  // The name in front of an equals sign.
  const size_t equals = between.rfind('=');
  if (equals != std::string_view::npos) {
    if (Trim(between.substr(equals + 1), " \t\r\n$").size() > 0) return false;
    std::string_view head = between.substr(0, equals);
    const size_t begin = head.find_last_of(" \t\n$,(;");
    const std::string_view name = Trim(
        begin == std::string_view::npos ? head
        : Trim(head).size() == 0        ? std::string_view()
                                 : Trim(head).substr(Trim(head).find_last_of(" \t\n$,(;") + 1));
    if (name.empty() || name.size() > 8) return false;
    const size_t at = head.rfind(name);
    return JoinsBoxes(head.substr(0, at));
  }
  for (size_t i = 0; i < between.size();) {
    const auto* word =
        std::find_if(std::begin(kJoining), std::end(kJoining),
                     [&](std::string_view w) { return between.substr(i, w.size()) == w; });
    if (word != std::end(kJoining)) {
      i += word->size();
    } else if (std::string_view(" \t\r\n,;$&{}*()").find(between[i]) != std::string_view::npos) {
      ++i;
    } else {
      return false;
    }
  }
  return true;
}

}  // namespace

std::optional<std::string> ExtractBoxedAnswer(std::string_view text) {
  std::string_view command = "\\boxed";
  std::optional<Box> box = LastBox(text, command, text.size());
  if (!box) {
    for (const std::string_view other : {"\\fbox", "\\framebox"}) {
      command = other;
      box = LastBox(text, command, text.size());
      if (box) break;
    }
  }
  if (!box || box->end == std::string_view::npos) return std::nullopt;
  const size_t end = box->end;
  std::string answer(Trim(box->content));
  size_t num_boxes = 1;
  while (num_boxes < kMaxBoxes) {
    const std::optional<Box> before = LastBox(text, command, box->begin);
    if (!before || before->end == std::string_view::npos || before->end > box->begin) break;
    if (!JoinsBoxes(text.substr(before->end, box->begin - before->end))) break;
    const std::string_view content = Trim(before->content);
    // The same answer may be given twice.
    if (num_boxes > 1 || !EquivalentAnswers(content, answer)) {
      answer = std::string(content) + ", " + answer;
      ++num_boxes;
    }
    box = before;
  }
  // "(\\boxed{1}, \\boxed{2})" is a tuple.
  const std::string_view head = Trim(text.substr(0, box->begin), kBlanks);
  const std::string_view tail = Trim(text.substr(end), kBlanks);
  const bool tuple =
      num_boxes > 1 && !head.empty() && !tail.empty() && head.back() == '(' && tail.front() == ')';
  return tuple ? "(" + answer + ")" : answer;
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
