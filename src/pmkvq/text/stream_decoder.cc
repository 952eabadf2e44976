#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/io/utf8.h"
#include "pmkvq/text/tokenizer.h"
#include "pmkvq/text/tokenizer_parts.h"
#include "pmkvq/text/utf8.h"

namespace pmkvq {
namespace {

// Moves decided bytes from `pending` to the result: whole characters, and U+FFFD for invalid bytes:
// for each of them when `each_byte`, else for each beginning of a character. An incomplete
// character at the end stays, unless `finish`.
std::string TakeDecided(std::string* pending, bool each_byte, bool finish) {
  std::string text;
  size_t offset = 0;
  while (offset < pending->size()) {
    const Utf8Step step = ScanUtf8(*pending, offset);
    if (step.kind == Utf8Kind::kIncomplete && !finish) break;
    if (step.kind == Utf8Kind::kValid) {
      text.append(*pending, offset, step.length);
    } else {
      const size_t count = each_byte ? step.length : 1;
      for (size_t i = 0; i < count; ++i) AppendUtf8(kReplacementCharacter, &text);
    }
    offset += step.length;
  }
  pending->erase(0, offset);
  return text;
}

}  // namespace

StreamDecoder::StreamDecoder(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special,
                             bool continues_text)
    : tokenizer_(std::move(tokenizer)), skip_special_(skip_special) {
  PMKVQ_CHECK(tokenizer_ != nullptr);
  const std::optional<PieceText>& pieces = tokenizer_->parts_->pieces;
  spaces_to_drop_ = continues_text || !pieces.has_value() ? 0 : pieces->num_stripped();
}

std::string StreamDecoder::Push(int32_t id) {
  const std::string bytes = tokenizer_->TokenBytes(id);
  if (skip_special_ && tokenizer_->IsSpecial(id)) return Take(false);
  const TokenizerParts& parts = *tokenizer_->parts_;
  if (parts.pieces.has_value() && parts.pieces->KeepsSpaces(parts.vocabulary.Bytes(id))) {
    spaces_to_drop_ = 0;
  }
  pending_ += bytes;
  return Take(false);
}

std::string StreamDecoder::Finish() { return Take(true); }

std::string StreamDecoder::Take(bool finish) {
  std::string text = TakeDecided(&pending_, tokenizer_->parts_->pieces.has_value(), finish);
  size_t dropped = 0;
  while (dropped < text.size() && spaces_to_drop_ > 0) {
    if (text[dropped] == ' ') {
      ++dropped;
      --spaces_to_drop_;
    } else {
      spaces_to_drop_ = 0;
    }
  }
  return text.erase(0, dropped);
}

}  // namespace pmkvq
