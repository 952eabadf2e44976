#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/io/utf8.h"
#include "pmkvq/text/tokenizer.h"
#include "pmkvq/text/utf8.h"

namespace pmkvq {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD.

// Moves decided bytes from `pending` to the result: whole characters, and U+FFFD for invalid bytes.
// An incomplete character at the end stays, unless `finish`.
std::string TakeDecided(std::string* pending, bool finish) {
  std::string text;
  size_t offset = 0;
  while (offset < pending->size()) {
    const Utf8Step step = ScanUtf8(*pending, offset);
    if (step.kind == Utf8Kind::kIncomplete && !finish) break;
    if (step.kind == Utf8Kind::kValid) {
      text.append(*pending, offset, step.length);
    } else {
      text += kReplacement;
    }
    offset += step.length;
  }
  pending->erase(0, offset);
  return text;
}

}  // namespace

StreamDecoder::StreamDecoder(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special)
    : tokenizer_(std::move(tokenizer)), skip_special_(skip_special) {
  PMKVQ_CHECK(tokenizer_ != nullptr);
}

std::string StreamDecoder::Push(int32_t id) {
  const std::string bytes = tokenizer_->TokenBytes(id);
  if (!skip_special_ || !tokenizer_->IsSpecial(id)) pending_ += bytes;
  return TakeDecided(&pending_, false);
}

std::string StreamDecoder::Finish() { return TakeDecided(&pending_, true); }

}  // namespace pmkvq
