#include "pmkvq/text/pre_tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/io/limits.h"

namespace pmkvq {
namespace {

// ByteLevel's own pattern, GPT-2's.
constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

constexpr size_t kMaxSplits = 64;  // A compiled pattern takes some kilobytes, a part some 60 bytes.

SplitBehavior ParseBehavior(const JsonValue& json) {
  const std::string name = json.AsString();
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  throw Unsupported(json.Where(),
                    fmt::format("found \"{}\", expected Isolated, Removed, MergedWithPrevious, "
                                "MergedWithNext or Contiguous",
                                name));
}

struct Part {
  Span span;
  bool is_match;
};

// The whole text as matches and the parts between them.
std::vector<Part> Partition(std::string_view text, const std::vector<Span>& matches, bool invert) {
  std::vector<Part> parts;
  parts.reserve(matches.size() * 2 + 1);
  size_t end = 0;
  for (const Span& match : matches) {
    if (end != match.begin) parts.push_back({{end, match.begin}, invert});
    parts.push_back({match, !invert});
    end = match.end;
  }
  if (end != text.size()) parts.push_back({{end, text.size()}, invert});
  return parts;
}

// Joins parts to the piece before them (in the order given) where `joins(part, previous)`.
template <typename Joins, typename Iterator>
std::vector<Span> Join(Iterator begin, Iterator end, Joins joins) {
  std::vector<Span> pieces;
  bool previous_match = false;
  for (Iterator part = begin; part != end; ++part) {
    if (!pieces.empty() && joins(part->is_match, previous_match)) {
      pieces.back().begin = std::min(pieces.back().begin, part->span.begin);
      pieces.back().end = std::max(pieces.back().end, part->span.end);
    } else {
      pieces.push_back(part->span);
    }
    previous_match = part->is_match;
  }
  return pieces;
}

void CutAll(std::vector<std::string_view>* views, const Regex& regex, SplitBehavior behavior,
            bool invert) {
  std::vector<std::string_view> result;
  result.reserve(views->size());
  for (const std::string_view view : *views) {
    for (const Span& span : ApplySplit(view, regex.FindAll(view), behavior, invert)) {
      if (span.begin != span.end) result.push_back(view.substr(span.begin, span.end - span.begin));
    }
  }
  *views = std::move(result);
}

}  // namespace

std::vector<Span> ApplySplit(std::string_view text, const std::vector<Span>& matches,
                             SplitBehavior behavior, bool invert) {
  const std::vector<Part> parts = Partition(text, matches, invert);
  const auto match_after_other = [](bool is_match, bool previous) { return is_match && !previous; };
  switch (behavior) {
    case SplitBehavior::kIsolated:
      return Join(parts.begin(), parts.end(), [](bool, bool) { return false; });
    case SplitBehavior::kMergedWithPrevious:
      return Join(parts.begin(), parts.end(), match_after_other);
    case SplitBehavior::kMergedWithNext: {
      std::vector<Span> pieces = Join(parts.rbegin(), parts.rend(), match_after_other);
      std::reverse(pieces.begin(), pieces.end());
      return pieces;
    }
    case SplitBehavior::kContiguous:
      return Join(parts.begin(), parts.end(),
                  [](bool is_match, bool previous) { return is_match == previous; });
    case SplitBehavior::kRemoved:
      break;
  }
  std::vector<Span> pieces;
  for (const Part& part : parts) {
    if (!part.is_match) pieces.push_back(part.span);
  }
  return pieces;
}

PreTokenizer::PreTokenizer(const JsonValue& json) {
  if (json.IsNull()) json.Fail("a pre-tokenizer that ends in ByteLevel");
  Add(json);
  if (!has_byte_level_) throw Unsupported(json.Where(), "found no ByteLevel at its end");
}

void PreTokenizer::Add(const JsonValue& json) {
  const std::string type = json.At("type").AsString();
  if (has_byte_level_) {
    throw Unsupported(json.Where(), fmt::format("found \"{}\" after ByteLevel", type));
  }
  if (type == "Sequence") {
    const JsonValue parts = json.At("pretokenizers");
    if (!parts.IsArray()) parts.Fail("an array");
    for (size_t i = 0; i < parts.size(); ++i) Add(parts.At(i));
  } else if (type == "Split") {
    AddSplit(json);
  } else if (type == "ByteLevel") {
    AddByteLevel(json);
  } else {
    throw Unsupported(json.Where(),
                      fmt::format("found \"{}\", expected ByteLevel, Split or Sequence", type));
  }
}

void PreTokenizer::AddSplit(const JsonValue& json) {
  const JsonValue pattern = json.At("pattern");
  const bool literal = pattern.Has("String");
  const JsonValue source = literal ? pattern.At("String") : pattern.At("Regex");
  if (stages_.size() == kMaxSplits) json.Fail(fmt::format("at most {} splits", kMaxSplits));
  if (source.AsStringView().size() > limits::kPatternBytes) {
    source.Fail(fmt::format("at most {} bytes", limits::kPatternBytes));
  }
  Regex regex(source.AsString(), literal ? Regex::Syntax::kLiteral : Regex::Syntax::kPattern,
              source.Where());
  const bool invert = json.Has("invert") && json.At("invert").AsBool();
  stages_.push_back({std::move(regex), ParseBehavior(json.At("behavior")), invert});
}

void PreTokenizer::AddByteLevel(const JsonValue& json) {
  has_byte_level_ = true;
  add_prefix_space_ = json.At("add_prefix_space").AsBool();
  if (!json.Has("use_regex") || json.At("use_regex").AsBool()) {
    byte_level_regex_.push_back({Regex(kGpt2Pattern, Regex::Syntax::kPattern, json.Where()),
                                 SplitBehavior::kIsolated, false});
  }
}

Pieces PreTokenizer::Split(std::string_view text) const {
  Pieces pieces;
  if (!text.empty()) pieces.views.push_back(text);
  for (const SplitStage& stage : stages_) {
    CutAll(&pieces.views, stage.regex, stage.behavior, stage.invert);
  }
  if (add_prefix_space_) {
    for (std::string_view& view : pieces.views) {
      if (view.front() == ' ') continue;
      view = pieces.storage.emplace_back(1, ' ').append(view);
    }
  }
  for (const SplitStage& stage : byte_level_regex_) {
    CutAll(&pieces.views, stage.regex, stage.behavior, stage.invert);
  }
  return pieces;
}

}  // namespace pmkvq
