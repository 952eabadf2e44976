#include "pmkvq/research/judge/math_collection.h"

#include <algorithm>
#include <utility>

#include "pmkvq/research/judge/math_tokens.h"

namespace pmkvq {
namespace {

// Both readings of a formula with \pm (and \mp, of the other sign); the formula itself without.
std::vector<std::string> ExpandPlusMinus(const std::string& text) {
  std::string upper;
  std::string lower;
  for (size_t i = 0; i < text.size();) {
    const size_t length = TokenLength(text, i);
    const std::string_view token = std::string_view(text).substr(i, length);
    const std::string_view name = WithoutBlank(token);
    upper += name == "\\pm" ? "+" : name == "\\mp" ? "-" : token;
    lower += name == "\\pm" ? "-" : name == "\\mp" ? "+" : token;
    i += length;
  }
  if (upper == lower) return {text};
  return {upper, lower};
}

}  // namespace

std::optional<Tuple> ParseTuple(std::string_view text) {
  for (const std::string_view open : {"(", "["}) {
    for (const std::string_view close : {")", "]"}) {
      if (!IsEnclosed(text, open, close)) continue;
      Tuple tuple;
      tuple.brackets = std::string(open) + std::string(close);
      tuple.items = SplitItems(text.substr(1, text.size() - 2));
      if (tuple.items.size() > 1) return tuple;
    }
  }
  return std::nullopt;
}

ItemList ParseItems(std::string_view text) {
  ItemList list;
  list.is_set = IsEnclosed(text, "\\{", "\\}");
  if (list.is_set) text = text.substr(2, text.size() - 4);
  if (text.empty() || text == "\\emptyset") {
    list.is_set = true;
    return list;
  }
  for (const std::string& item : SplitItems(text)) {
    for (std::string& reading : ExpandPlusMinus(item)) list.items.push_back(std::move(reading));
  }
  return list;
}

namespace {

// "(\begin{matrix}...\end{matrix})": the matrix, and in `brackets` those around it.
std::string_view TakeBracketsOfMatrix(std::string_view text, std::string* brackets) {
  for (const std::string_view open : {"(", "["}) {
    for (const std::string_view close : {")", "]"}) {
      if (!StartsWith(text.substr(std::min<size_t>(1, text.size())), "\\begin{")) continue;
      if (IsEnclosed(text, open, close)) return text.substr(1, text.size() - 2);
    }
  }
  const bool bars = text.size() > 2 && text.front() == '|' && text.back() == '|';
  if (bars && StartsWith(text.substr(1), "\\begin{")) {
    *brackets = "vmatrix";
    return text.substr(1, text.size() - 2);
  }
  return text;
}

}  // namespace

std::optional<Matrix> ParseMatrix(std::string_view text) {
  constexpr std::string_view kBegin = "\\begin{";
  constexpr std::string_view kEnd = "\\end{";
  std::string outer = "pmatrix";
  text = TakeBracketsOfMatrix(text, &outer);
  const size_t name_end = text.find('}');
  if (!StartsWith(text, kBegin) || name_end == std::string_view::npos) return std::nullopt;
  const std::string_view name = text.substr(kBegin.size(), name_end - kBegin.size());
  const std::string end = std::string(kEnd) + std::string(name) + "}";
  if (text.size() < name_end + 1 + end.size()) return std::nullopt;
  if (text.substr(text.size() - end.size()) != end) return std::nullopt;
  std::string_view body = text.substr(name_end + 1, text.size() - end.size() - name_end - 1);
  if (name == "array" && StartsWith(body, "{")) {
    // The alignment of its columns.
    body.remove_prefix(std::min(body.size(), body.find('}') == body.npos ? 0 : body.find('}') + 1));
  }
  Matrix matrix;
  const bool plain = name == "matrix" || name == "smallmatrix" || name == "array";
  matrix.brackets = plain ? outer : name == "bmatrix" ? "pmatrix" : std::string(name);
  for (const std::string& row : SplitAtToken(body, "\\\\")) {
    if (!row.empty()) matrix.rows.push_back(SplitAtToken(row, "&"));
  }
  return matrix;
}

}  // namespace pmkvq
