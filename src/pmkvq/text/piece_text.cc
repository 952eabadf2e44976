#include "pmkvq/text/piece_text.h"

#include <fmt/format.h>

#include <algorithm>

#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/io/utf8.h"
#include "pmkvq/text/normalizer.h"
#include "pmkvq/text/subword_model.h"
#include "pmkvq/text/utf8.h"

namespace pmkvq {
namespace {

constexpr size_t kMaxReplacements = 64;
constexpr size_t kMaxReplacementBytes = 256;
constexpr size_t kMaxPieceBytes = size_t{1} << 20;

[[noreturn]] void Refuse(const JsonValue& json) {
  throw Unsupported(json.Where(),
                    fmt::format("found {}, expected Replace (of a String), ByteFallback, Fuse, "
                                "Strip (of spaces at the start), in this order",
                                json.Dump().substr(0, 80)));
}

}  // namespace

PieceText::PieceText(size_t num_stripped) : num_stripped_(num_stripped) {
  replaced_.emplace_back(kSpaceMark, " ");
}

PieceText::PieceText(const JsonValue& json) : is_json_(true) {
  if (json.At("type").AsString() != "Sequence") Refuse(json);
  const JsonValue parts = json.At("decoders");
  if (!parts.IsArray()) parts.Fail("an array");
  for (size_t i = 0; i < parts.size(); ++i) Add(parts.At(i));
  if (stage_ < Stage::kFuse) parts.Fail("ByteFallback and Fuse among them");
}

void PieceText::Add(const JsonValue& json) {
  const std::string type = json.At("type").AsString();
  if (type == "Replace" && stage_ == Stage::kReplace) {
    const JsonValue pattern = json.At("pattern");
    if (!pattern.Has("String") || replaced_.size() == kMaxReplacements) Refuse(json);
    const std::string from = pattern.At("String").AsString();
    const std::string to = json.At("content").AsString();
    if (from.empty() || std::max(from.size(), to.size()) > kMaxReplacementBytes) Refuse(json);
    replaced_.emplace_back(from, to);
  } else if (type == "ByteFallback" && stage_ == Stage::kReplace) {
    stage_ = Stage::kBytes;
  } else if (type == "Fuse" && stage_ == Stage::kBytes) {
    stage_ = Stage::kFuse;
  } else if (type == "Strip" && stage_ == Stage::kFuse) {
    stage_ = Stage::kStrip;
    if (json.At("content").AsString() != " " || json.At("stop").AsInt() != 0) Refuse(json);
    num_stripped_ =
        static_cast<size_t>(json.At("start").AsInt(0, static_cast<int64_t>(kMostStripped)));
  } else {
    Refuse(json);
  }
}

std::string PieceText::BytesOf(std::string_view piece) const {
  const int byte = ByteOfPiece(piece);
  if (byte >= 0) return std::string(1, static_cast<char>(byte));
  std::string text(piece);
  for (const auto& [from, to] : replaced_) text = ReplaceAll(text, from, to, kMaxPieceBytes);
  return text;
}

bool PieceText::KeepsSpaces(std::string_view piece) const {
  return !is_json_ && ByteOfPiece(piece) >= 0;
}

namespace {

// Takes at most `*most` spaces off the beginning; a text that goes on ends the counting.
void DropSpaces(std::string* text, size_t* most) {
  const size_t spaces = std::min(std::min(text->find_first_not_of(' '), text->size()), *most);
  text->erase(0, spaces);
  *most = text->empty() ? *most - spaces : 0;
}

}  // namespace

std::string PieceText::Decode(const std::vector<std::string_view>& pieces) const {
  std::string text;
  size_t droppable = num_stripped_;
  std::string run;  // Bytes of byte tokens in a row.
  const auto append = [&](std::string part) {
    if (droppable > 0) DropSpaces(&part, &droppable);
    text += part;
  };
  const auto end_run = [&] {
    std::string part;
    if (is_json_ && ValidUtf8Prefix(run) != run.size()) {
      for (size_t i = 0; i < run.size(); ++i) AppendUtf8(kReplacementCharacter, &part);
    } else {
      AppendValid(run, &part);
    }
    run.clear();
    append(std::move(part));
  };
  for (const std::string_view piece : pieces) {
    CancelPoint();
    if (KeepsSpaces(piece)) droppable = 0;
    if (ByteOfPiece(piece) >= 0) {
      run += BytesOf(piece);
      continue;
    }
    if (!run.empty()) end_run();
    append(BytesOf(piece));
  }
  if (!run.empty()) end_run();
  return text;
}

void AppendValid(std::string_view bytes, std::string* text) {
  for (size_t offset = 0; offset < bytes.size();) {
    const Utf8Step step = ScanUtf8(bytes, offset);
    if (step.kind == Utf8Kind::kValid) {
      text->append(bytes, offset, step.length);
    } else {
      for (size_t i = 0; i < step.length; ++i) AppendUtf8(kReplacementCharacter, text);
    }
    offset += step.length;
  }
}

}  // namespace pmkvq
