#include "pmkvq/text/added_tokens.h"

#include <utf8proc.h>

#include <algorithm>

#include "pmkvq/base/check.h"
#include "pmkvq/text/utf8.h"

namespace pmkvq {
namespace {

// \w of Hugging Face's regular expressions: Alphabetic, Mark, Decimal_Number,
// Connector_Punctuation, Join_Control.
bool IsWordCharacter(char32_t c) {
  if (c == 0x200C || c == 0x200D) return true;
  // Symbols that are Alphabetic: circled, parenthesised and squared Latin letters.
  if ((c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
      (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189)) {
    return true;
  }
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return false;
  }
}

bool TouchesWord(std::string_view text, size_t begin, size_t end) {
  size_t length = 0;
  return (begin > 0 && IsWordCharacter(DecodeUtf8Before(text, begin, &length))) ||
         (end < text.size() && IsWordCharacter(DecodeUtf8(text, end, &length)));
}

size_t SkipSpaceBefore(std::string_view text, size_t begin, size_t limit) {
  size_t length = 0;
  while (begin > limit && IsWhiteSpace(DecodeUtf8Before(text, begin, &length))) begin -= length;
  return begin;
}

size_t SkipSpaceAfter(std::string_view text, size_t end) {
  size_t length = 0;
  while (end < text.size() && IsWhiteSpace(DecodeUtf8(text, end, &length))) end += length;
  return end;
}

}  // namespace

bool IsControlToken(const AddedToken& token) {
  const std::string_view text = token.content;
  return token.special || (text.starts_with("<|") && text.ends_with("|>")) ||
         (text.starts_with("<｜") && text.ends_with("｜>"));
}

void AddedTokenMatcher::Add(const AddedToken& token) {
  PMKVQ_CHECK(!token.content.empty());
  uint32_t node = 0;
  for (const char byte : token.content) {
    const uint64_t key = uint64_t{node} << 8 | static_cast<unsigned char>(byte);
    const auto next = static_cast<uint32_t>(token_of_node_.size());
    const auto [edge, is_new] = edges_.try_emplace(key, next);
    if (is_new) token_of_node_.push_back(kNone);
    node = edge->second;
  }
  PMKVQ_CHECK(token_of_node_[node] == kNone);
  token_of_node_[node] = static_cast<int32_t>(tokens_.size());
  starts_[static_cast<unsigned char>(token.content.front())] = true;
  tokens_.push_back(token);
}

int32_t AddedTokenMatcher::LongestAt(std::string_view text, size_t offset) const {
  int32_t longest = kNone;
  uint32_t node = 0;
  for (size_t i = offset; i < text.size(); ++i) {
    const auto edge = edges_.find(uint64_t{node} << 8 | static_cast<unsigned char>(text[i]));
    if (edge == edges_.end()) break;
    node = edge->second;
    if (token_of_node_[node] != kNone) longest = token_of_node_[node];
  }
  return longest;
}

size_t AddedTokenMatcher::LengthAt(std::string_view text, size_t offset) const {
  if (!starts_[static_cast<unsigned char>(text[offset])]) return 0;
  const int32_t index = LongestAt(text, offset);
  return index == kNone ? 0 : tokens_[static_cast<size_t>(index)].content.size();
}

std::vector<Segment> AddedTokenMatcher::Split(std::string_view text, bool parse_special) const {
  if (parse_special || text.empty()) return Split(text, std::vector<ByteRange>{});
  return Split(text, std::vector<ByteRange>{{0, text.size()}});
}

std::vector<Segment> AddedTokenMatcher::Split(std::string_view text,
                                              const std::vector<ByteRange>& literal) const {
  std::vector<Segment> segments;
  size_t done = 0;  // Everything before is in segments.
  auto range = literal.begin();
  for (size_t offset = 0; offset < text.size();) {
    const bool may_start = starts_[static_cast<unsigned char>(text[offset])];
    int32_t index = may_start ? LongestAt(text, offset) : kNone;
    if (index == kNone) {
      ++offset;
      continue;
    }
    size_t begin = offset;
    size_t end = offset + tokens_[static_cast<size_t>(index)].content.size();
    while (range != literal.end() && range->end <= begin) ++range;
    if (IsControlToken(tokens_[static_cast<size_t>(index)]) && range != literal.end() &&
        range->begin < end) {
      if (range->begin <= begin) {
        // A token that is text hides others inside of it, unless it leaves the literal range.
        offset = end <= range->end ? end : offset + 1;
        continue;
      }
      // It would reach into the literal range; a shorter one may end before.
      index = LongestAt(text.substr(0, range->begin), offset);
      if (index == kNone) {
        ++offset;
        continue;
      }
      end = offset + tokens_[static_cast<size_t>(index)].content.size();
    }
    const AddedToken& token = tokens_[static_cast<size_t>(index)];
    offset = end;
    if (token.single_word && TouchesWord(text, begin, end)) continue;
    if (token.lstrip) begin = SkipSpaceBefore(text, begin, done);
    if (token.rstrip) end = SkipSpaceAfter(text, end);
    // `begin` lies before `done` when the token before took the white space this one starts with.
    if (begin > done) segments.push_back({text.substr(done, begin - done), kNone});
    segments.push_back({text.substr(begin, end - begin), token.id});
    // Back again, where the token before took white space that this one begins with: its rest is
    // text, as in the library of tokenizer.json.
    done = end;
  }
  if (done < text.size()) segments.push_back({text.substr(done), kNone});
  return segments;
}

}  // namespace pmkvq
