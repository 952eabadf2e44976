#include "pmkvq/text/pre_tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/io/limits.h"
#include "pmkvq/text/normalizer.h"

namespace pmkvq {
namespace {

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

const std::string_view PreTokenizer::kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

PreTokenizer::PreTokenizer(const JsonValue& json, bool byte_level) {
  if (!byte_level && json.IsNull()) return;
  if (json.IsNull()) json.Fail("a pre-tokenizer that ends in ByteLevel");
  Add(json, byte_level);
  if (byte_level && !has_byte_level_) {
    throw Unsupported(json.Where(), "found no ByteLevel at its end");
  }
}

PreTokenizer::PreTokenizer(const std::vector<std::string_view>& patterns,
                           const std::string& where) {
  for (const std::string_view pattern : patterns) {
    Stage stage;
    stage.regex.emplace_back(pattern, Regex::Syntax::kPattern, where);
    stages_.push_back(std::move(stage));
  }
}

void PreTokenizer::Add(const JsonValue& json, bool byte_level) {
  const std::string type = json.At("type").AsString();
  if (has_byte_level_) {
    throw Unsupported(json.Where(), fmt::format("found \"{}\" after ByteLevel", type));
  }
  if (type == "Sequence") {
    const JsonValue parts = json.At("pretokenizers");
    if (!parts.IsArray()) parts.Fail("an array");
    for (size_t i = 0; i < parts.size(); ++i) Add(parts.At(i), byte_level);
  } else if (type == "Split") {
    AddSplit(json);
  } else if (type == "Digits") {
    AddDigits(json);
  } else if (type == "ByteLevel" && byte_level) {
    AddByteLevel(json);
  } else if (type == "Metaspace" && !byte_level) {
    AddMetaspace(json);
  } else {
    throw Unsupported(json.Where(),
                      fmt::format("found \"{}\", expected {}, Split, Digits or Sequence", type,
                                  byte_level ? "ByteLevel" : "Metaspace"));
  }
}

void PreTokenizer::AddStage(const JsonValue& json, Stage stage) {
  if (stages_.size() == kMaxSplits) json.Fail(fmt::format("at most {} splits", kMaxSplits));
  stages_.push_back(std::move(stage));
}

void PreTokenizer::AddSplit(const JsonValue& json) {
  const JsonValue pattern = json.At("pattern");
  const bool literal = pattern.Has("String");
  const JsonValue source = literal ? pattern.At("String") : pattern.At("Regex");
  if (source.AsStringView().size() > limits::kPatternBytes) {
    source.Fail(fmt::format("at most {} bytes", limits::kPatternBytes));
  }
  Stage stage;
  stage.regex.emplace_back(source.AsString(),
                           literal ? Regex::Syntax::kLiteral : Regex::Syntax::kPattern,
                           source.Where());
  stage.behavior = ParseBehavior(json.At("behavior"));
  stage.invert = json.Has("invert") && json.At("invert").AsBool();
  AddStage(json, std::move(stage));
}

void PreTokenizer::AddDigits(const JsonValue& json) {
  Stage stage;
  stage.regex.emplace_back(R"(\p{N})", Regex::Syntax::kPattern, json.Where());
  if (!json.BoolOr("individual_digits", false)) stage.behavior = SplitBehavior::kContiguous;
  AddStage(json, std::move(stage));
}

void PreTokenizer::AddMetaspace(const JsonValue& json) {
  Stage stage;
  stage.is_metaspace = true;
  const JsonValue mark = json.At("replacement");
  stage.mark = mark.AsString();
  if (stage.mark.empty() || stage.mark.size() > 4) mark.Fail("one character");
  // Files from before prepend_scheme have add_prefix_space.
  const JsonValue scheme = json.Find("prepend_scheme");
  const std::string name = scheme.IsNull()
                               ? (json.BoolOr("add_prefix_space", true) ? "always" : "never")
                               : scheme.AsString();
  if (name != "first" && name != "always" && name != "never") {
    scheme.Fail("first, always or never");
  }
  stage.prefix = name == "first"    ? Prefix::kFirst
                 : name == "always" ? Prefix::kAlways
                                    : Prefix::kNever;
  if (json.BoolOr("split", true)) {
    stage.regex.emplace_back(stage.mark, Regex::Syntax::kLiteral, json.Where());
    stage.behavior = SplitBehavior::kMergedWithNext;
  }
  AddStage(json, std::move(stage));
}

void PreTokenizer::AddByteLevel(const JsonValue& json) {
  has_byte_level_ = true;
  add_prefix_space_ = json.At("add_prefix_space").AsBool();
  if (!json.Has("use_regex") || json.At("use_regex").AsBool()) {
    Stage stage;
    stage.regex.emplace_back(kGpt2Pattern, Regex::Syntax::kPattern, json.Where());
    byte_level_regex_.push_back(std::move(stage));
  }
}

// Spaces become the mark, and the mark is put in front. `start`: the piece that Prefix::kFirst is
// about, by its place.
void PreTokenizer::Mark(const Stage& stage, std::string_view start, Pieces* pieces) {
  for (std::string_view& view : pieces->views) {
    const bool is_start = view.data() == start.data();
    std::string marked = ReplaceAll(view, " ", stage.mark, std::string::npos);
    const bool prefix =
        stage.prefix == Prefix::kAlways || (stage.prefix == Prefix::kFirst && is_start);
    if (prefix && !marked.starts_with(stage.mark)) marked.insert(0, stage.mark);
    view = pieces->storage.emplace_back(std::move(marked));
  }
}

Pieces PreTokenizer::Split(std::string_view text, bool at_start) const {
  Pieces pieces;
  if (!text.empty()) pieces.views.push_back(text);
  const std::string_view start = at_start ? text : std::string_view();
  for (const Stage& stage : stages_) {
    if (stage.is_metaspace) Mark(stage, start, &pieces);
    for (const Regex& regex : stage.regex) {
      CutAll(&pieces.views, regex, stage.behavior, stage.invert);
    }
  }
  if (add_prefix_space_) {
    for (std::string_view& view : pieces.views) {
      if (view.front() == ' ') continue;
      view = pieces.storage.emplace_back(1, ' ').append(view);
    }
  }
  for (const Stage& stage : byte_level_regex_) {
    CutAll(&pieces.views, stage.regex.front(), stage.behavior, stage.invert);
  }
  return pieces;
}

}  // namespace pmkvq
