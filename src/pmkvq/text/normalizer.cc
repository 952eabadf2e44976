#include "pmkvq/text/normalizer.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/text/utf8.h"

namespace pmkvq {
namespace {

using CodePoints = std::vector<utf8proc_int32_t>;

// Canonical decompositions in Unicode have at most 4 characters.
constexpr utf8proc_ssize_t kMaxDecomposition = 8;

CodePoints Decompose(std::string_view text) {
  CodePoints points;
  points.reserve(text.size());
  int boundary_class = 0;
  for (size_t offset = 0; offset < text.size();) {
    size_t length = 0;
    const auto point = static_cast<utf8proc_int32_t>(DecodeUtf8(text, offset, &length));
    offset += length;
    utf8proc_int32_t parts[kMaxDecomposition];
    const utf8proc_ssize_t count = utf8proc_decompose_char(point, parts, kMaxDecomposition,
                                                           UTF8PROC_DECOMPOSE, &boundary_class);
    PMKVQ_CHECK(count >= 0 && count <= kMaxDecomposition);
    points.insert(points.end(), parts, parts + count);
  }
  return points;
}

int CombiningClass(utf8proc_int32_t point) {
  return static_cast<int>(utf8proc_get_property(point)->combining_class);
}

// Canonical ordering. Sorted here because utf8proc's own way takes quadratic time on long runs of
// combining marks.
void OrderMarks(CodePoints* points) {
  const auto is_mark = [](utf8proc_int32_t point) { return CombiningClass(point) != 0; };
  const auto by_class = [](utf8proc_int32_t a, utf8proc_int32_t b) {
    return CombiningClass(a) < CombiningClass(b);
  };
  for (auto begin = std::find_if(points->begin(), points->end(), is_mark);
       begin != points->end();) {
    const auto end = std::find_if_not(begin, points->end(), is_mark);
    std::stable_sort(begin, end, by_class);
    begin = std::find_if(end, points->end(), is_mark);
  }
}

}  // namespace

std::string Nfc(std::string_view text) {
  // Everything below U+0300, which is CC 80 in UTF-8, is its own NFC.
  const auto may_change = [](char byte) { return static_cast<unsigned char>(byte) >= 0xCC; };
  if (std::none_of(text.begin(), text.end(), may_change)) return std::string(text);

  CodePoints points = Decompose(text);
  OrderMarks(&points);
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  const utf8proc_ssize_t count = utf8proc_normalize_utf32(
      points.data(), static_cast<utf8proc_ssize_t>(points.size()), options);
  PMKVQ_CHECK(count >= 0);
  std::string result;
  result.reserve(text.size());
  for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
    AppendUtf8(static_cast<char32_t>(points[i]), &result);
  }
  return result;
}

std::string ReplaceAll(std::string_view text, std::string_view from, std::string_view to,
                       size_t max_bytes) {
  std::string result;
  result.reserve(text.size());
  size_t done = 0;
  for (size_t found = text.find(from); found != std::string_view::npos;
       found = text.find(from, done)) {
    result.append(text, done, found - done).append(to);
    done = found + from.size();
    if (result.size() > max_bytes) {
      throw InvalidInput("tokenizer", fmt::format("Replace: a text grew beyond {} bytes, expected "
                                                  "replacements that are not much longer",
                                                  max_bytes));
    }
  }
  return result.append(text, done);
}

namespace {

std::string TrimSpaces(std::string_view text) {
  std::string result;
  for (const char c : text) {
    if (c != ' ' || (!result.empty() && result.back() != ' ')) result += c;
  }
  if (!result.empty() && result.back() == ' ') result.pop_back();
  return result;
}

// A step takes time for every text, and memory.
constexpr size_t kMaxSteps = 64;
constexpr size_t kMaxReplacementBytes = 256;

std::string ShortText(const JsonValue& json) {
  if (json.AsStringView().size() > kMaxReplacementBytes) {
    json.Fail(fmt::format("at most {} bytes", kMaxReplacementBytes));
  }
  return json.AsString();
}

}  // namespace

Normalizer::Normalizer(const JsonValue& json) {
  if (!json.IsNull()) Add(json);
}

void Normalizer::Add(const JsonValue& json) {
  const std::string type = json.At("type").AsString();
  if (type == "Sequence") {
    const JsonValue parts = json.At("normalizers");
    if (!parts.IsArray()) parts.Fail("an array");
    for (size_t i = 0; i < parts.size(); ++i) Add(parts.At(i));
    return;
  }
  if (steps_.size() == kMaxSteps) json.Fail(fmt::format("at most {} steps", kMaxSteps));
  if (type == "NFC") {
    // Twice is the same as once.
    if (steps_.empty() || steps_.back().kind != Kind::kNfc) AddNfc();
  } else if (type == "Prepend") {
    AddPrefix(ShortText(json.At("prepend")));
  } else if (type == "Replace") {
    const JsonValue pattern = json.At("pattern");
    if (!pattern.Has("String")) {
      throw Unsupported(pattern.Where(),
                        fmt::format("found {}, expected a String", pattern.Dump().substr(0, 80)));
    }
    const std::string from = ShortText(pattern.At("String"));
    if (from.empty()) pattern.At("String").Fail("a text that is not empty");
    AddReplace(from, ShortText(json.At("content")));
  } else {
    throw Unsupported(
        json.Where(),
        fmt::format("found \"{}\", expected NFC, Prepend, Replace or Sequence", type));
  }
}

std::string Normalizer::Normalize(std::string_view text, bool is_first) const {
  std::string result(text);
  constexpr size_t kMostGrowth = 64;
  const size_t max_bytes = kMostGrowth * (text.size() + 1);
  for (const Step& step : steps_) {
    switch (step.kind) {
      case Kind::kNfc:
        result = Nfc(result);
        break;
      case Kind::kPrefix:
        if (is_first && !result.empty()) result.insert(0, step.to);
        break;
      case Kind::kReplace:
        result = ReplaceAll(result, step.from, step.to, max_bytes);
        break;
      case Kind::kTrimSpaces:
        result = TrimSpaces(result);
        break;
      case Kind::kMap:
        result = map_->map.Apply(result, map_->kept, max_bytes);
        break;
      case Kind::kTrimEnd:
        while (result.ends_with(step.from)) result.resize(result.size() - step.from.size());
        break;
    }
  }
  return result;
}

}  // namespace pmkvq
