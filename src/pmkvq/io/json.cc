#include "pmkvq/io/json.h"

#include <fmt/format.h>
#include <rapidjson/error/en.h>
#include <rapidjson/reader.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/json_text.h"
#include "pmkvq/io/utf8.h"

namespace pmkvq {
namespace {

constexpr size_t kMaxQuotedBytes = 80;

std::string Cut(std::string text) {
  if (text.size() <= kMaxQuotedBytes) return text;
  text.resize(ValidUtf8Prefix(std::string_view(text).substr(0, kMaxQuotedBytes)));
  return text + "...";
}

// A member name as it appears in a path: as it is when plain, else as a JSON string.
std::string QuoteName(std::string_view name) {
  const auto plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.' || c == '/';
  };
  if (!name.empty() && std::all_of(name.begin(), name.end(), plain)) return Cut(std::string(name));
  std::string quoted;
  internal::AppendJsonString(quoted, name.substr(0, 2 * kMaxQuotedBytes));
  return Cut(quoted);
}

bool IsNumberCharacter(char c) {
  return (c >= '0' && c <= '9') || c == '-' || c == '+' || c == '.' || c == 'e' || c == 'E';
}

bool IsIntegerText(std::string_view text) {
  return text.find_first_of(".eE") == std::string_view::npos;
}

// False when it does not fit.
bool ReadInt(std::string_view text, int64_t* value) {
  const auto result = std::from_chars(text.data(), text.data() + text.size(), *value);
  return result.ec == std::errc() && result.ptr == text.data() + text.size();
}

// Rounded correctly; infinite beyond double, 0 (or a denormal number) far below its smallest.
double ReadDouble(std::string_view text) {
  double value = 0;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  // from_chars leaves the value alone in both cases; strtod tells them apart.
  return result.ec == std::errc::result_out_of_range
             ? std::strtod(std::string(text).c_str(), nullptr)
             : value;
}

enum class Tag : uint32_t { kNull, kFalse, kTrue, kNumber, kString, kArray, kObject };

// Entries of the tape, allocated in blocks: a growing vector would hold everything twice while it
// is copied.
class Tape {
 public:
  uint32_t size() const { return size_; }
  uint32_t operator[](uint32_t at) const { return blocks_[at >> kBits][at & kMask]; }
  void Set(uint32_t at, uint32_t word) { blocks_[at >> kBits][at & kMask] = word; }
  void Push(uint32_t word) {
    if ((size_ & kMask) == 0) {
      blocks_.push_back(std::make_unique_for_overwrite<uint32_t[]>(kMask + 1));
    }
    Set(size_++, word);
  }

 private:
  static constexpr uint32_t kBits = 12;
  static constexpr uint32_t kMask = (1u << kBits) - 1;
  std::vector<std::unique_ptr<uint32_t[]>> blocks_;
  uint32_t size_ = 0;
};

}  // namespace

// The text and its values in file order, as words of 32 bits: a tag in the upper 3 bits, below it a
// position in the text.
//   null, false, true   one word.
//   number              one word; its digits end where no number character follows.
//   string, member name one word, the position behind the opening quote. The quote's byte holds
//                       the length; 255 there: the length is the next word.
//   array, object       the number of elements or members in place of a position, then a word with
//                       the entry behind its last one, then the elements or pairs of name and
//                       value.
struct JsonValue::Document {
  static constexpr uint32_t kPositionBits = 29;
  static constexpr uint32_t kPositionMask = (1u << kPositionBits) - 1;
  static constexpr uint32_t kLongString = 255;

  std::string source;
  std::string text;
  Tape tape;

  Tag TagAt(uint32_t at) const { return static_cast<Tag>(tape[at] >> kPositionBits); }
  bool IsContainer(uint32_t at) const {
    return TagAt(at) == Tag::kArray || TagAt(at) == Tag::kObject;
  }

  const char* PositionOf(uint32_t at) const { return text.data() + (tape[at] & kPositionMask); }

  std::string_view String(uint32_t at) const {
    const char* begin = PositionOf(at);
    const auto length = static_cast<unsigned char>(begin[-1]);
    return {begin, length == kLongString ? tape[at + 1] : length};
  }

  std::string_view Number(uint32_t at) const {
    const char* begin = PositionOf(at);
    const char* end = begin;
    while (IsNumberCharacter(*end)) ++end;  // A std::string ends in a NUL.
    return {begin, static_cast<size_t>(end - begin)};
  }

  uint32_t Next(uint32_t at) const {
    switch (TagAt(at)) {
      case Tag::kString:
        return static_cast<unsigned char>(PositionOf(at)[-1]) == kLongString ? at + 2 : at + 1;
      case Tag::kArray:
      case Tag::kObject:
        return tape[at + 1];
      default:
        return at + 1;
    }
  }

  void AppendPath(uint32_t target, std::string* path) const;
  // Stops once `out` has `max_bytes`.
  void Append(uint32_t at, size_t max_bytes, std::string* out) const;
};

// Walks down to `target`: the child whose entries it lies among.
void JsonValue::Document::AppendPath(uint32_t target, std::string* path) const {
  for (uint32_t at = 0; at != target;) {
    const bool object = TagAt(at) == Tag::kObject;
    size_t index = 0;
    uint32_t name = 0;
    for (at += 2;; at = Next(at), ++index) {
      if (object) {
        name = at;
        at = Next(at);
      }
      if (target < Next(at)) break;
    }
    if (object && !path->empty()) *path += '.';
    *path += object ? QuoteName(String(name)) : fmt::format("[{}]", index);
  }
}

void JsonValue::Document::Append(uint32_t at, size_t max_bytes, std::string* out) const {
  switch (TagAt(at)) {
    case Tag::kNull:
      *out += "null";
      return;
    case Tag::kFalse:
      *out += "false";
      return;
    case Tag::kTrue:
      *out += "true";
      return;
    case Tag::kNumber:
      *out += Number(at);
      return;
    case Tag::kString:
      internal::AppendJsonString(*out, String(at).substr(0, max_bytes));
      return;
    case Tag::kArray:
    case Tag::kObject:
      break;
  }
  const bool object = TagAt(at) == Tag::kObject;
  *out += object ? '{' : '[';
  const uint32_t end = Next(at);
  for (uint32_t child = at + 2; child < end && out->size() < max_bytes; child = Next(child)) {
    if (child > at + 2) *out += ',';
    if (object) {
      internal::AppendJsonString(*out, String(child).substr(0, max_bytes));
      *out += ':';
      child = Next(child);
    }
    Append(child, max_bytes, out);
  }
  *out += object ? '}' : ']';
}

// Receives the parser's events. The parser keeps its stack on the heap, and so do we: nesting
// cannot overflow the call stack, and max_depth bounds the recursion of Append.
class JsonValue::Builder : public rapidjson::BaseReaderHandler<rapidjson::UTF8<>, Builder> {
 public:
  using Size = rapidjson::SizeType;

  Builder(Document& document, const JsonLimits& limits) : document_(document), limits_(limits) {}

  bool Null() { return Add(Tag::kNull); }
  bool Bool(bool value) { return Add(value ? Tag::kTrue : Tag::kFalse); }
  bool RawNumber(const char* digits, Size length, bool) {
    const std::string_view text(digits, length);
    // Only a long number, or one with an exponent, can be too large.
    constexpr size_t kAlwaysFinite = 300;
    if ((length > kAlwaysFinite || text.find_first_of("eE") != std::string_view::npos) &&
        !std::isfinite(ReadDouble(text))) {
      throw InvalidInput(document_.source,
                         fmt::format("not valid JSON at byte {}: the number is too large",
                                     digits - document_.text.data() + 1));
    }
    return Add(Tag::kNumber, digits);
  }
  bool String(const char* begin, Size length, bool) {
    Add(Tag::kString, begin);
    PushLength(begin, length);
    return true;
  }
  bool Key(const char* begin, Size length, bool) {
    document_.tape.Push(Word(Tag::kString, begin));
    PushLength(begin, length);
    return true;
  }
  bool StartObject() { return Open(Tag::kObject); }
  bool StartArray() { return Open(Tag::kArray); }
  bool EndArray(Size num_elements) {
    Close(num_elements);
    return true;
  }
  bool EndObject(Size num_members) {
    CheckNames(Close(num_members), num_members);
    return true;
  }

 private:
  static constexpr uint64_t kNodesPerCancelPoint = 1 << 16;  // Milliseconds.

  uint32_t Word(Tag tag, const char* position) const {
    return static_cast<uint32_t>(tag) << Document::kPositionBits |
           static_cast<uint32_t>(position - document_.text.data());
  }

  bool Add(Tag tag, const char* position) {
    if (++num_nodes_ > limits_.max_nodes) {
      throw InvalidInput(
          document_.source,
          fmt::format("JSON: found more than {} values, expected at most that", limits_.max_nodes));
    }
    if (num_nodes_ % kNodesPerCancelPoint == 0) CancelPoint();
    document_.tape.Push(Word(tag, position));
    return true;
  }
  bool Add(Tag tag) { return Add(tag, document_.text.data()); }

  void PushLength(const char* begin, Size length) {
    // An escape like \udc00 alone stands for no character. Only bytes after ED can be one.
    if (std::memchr(begin, 0xed, length) != nullptr && ValidUtf8Prefix({begin, length}) != length) {
      throw InvalidInput(document_.source,
                         fmt::format("not valid JSON at byte {}: half of a surrogate pair",
                                     begin - document_.text.data()));
    }
    char& quote = document_.text[static_cast<size_t>(begin - document_.text.data()) - 1];
    quote = static_cast<char>(std::min<uint32_t>(length, Document::kLongString));
    if (length >= Document::kLongString) document_.tape.Push(length);
  }

  bool Open(Tag tag) {
    if (open_.size() == limits_.max_depth) {
      throw InvalidInput(document_.source, fmt::format("nested deeper than the {} levels allowed",
                                                       limits_.max_depth));
    }
    open_.push_back(document_.tape.size());
    Add(tag);
    document_.tape.Push(0);  // Set by Close.
    return true;
  }

  uint32_t Close(Size count) {
    const uint32_t at = open_.back();
    open_.pop_back();
    document_.tape.Set(at, document_.tape[at] | count);  // Opened with position 0.
    document_.tape.Set(at + 1, document_.tape.size());
    return at;
  }

  void CheckNames(uint32_t object, Size num_members) {
    constexpr Size kFew = 8;
    const uint32_t end = document_.Next(object);
    const auto next = [&](uint32_t name) { return document_.Next(document_.Next(name)); };
    if (num_members <= kFew) {
      for (uint32_t name = object + 2; name < end; name = next(name)) {
        for (uint32_t other = object + 2; other < name; other = next(other)) {
          if (document_.String(other) == document_.String(name)) FailTwice(name);
        }
      }
      return;
    }
    // Sorted by hash, then by name: equal names become neighbours, also where hashes collide.
    hashes_.clear();
    hashes_.reserve(num_members);
    for (uint32_t name = object + 2; name < end; name = next(name)) {
      const size_t hash = std::hash<std::string_view>()(document_.String(name));
      hashes_.emplace_back(static_cast<uint32_t>(hash), name);
    }
    std::sort(hashes_.begin(), hashes_.end(), [&](const auto& a, const auto& b) {
      return a.first != b.first ? a.first < b.first
                                : document_.String(a.second) < document_.String(b.second);
    });
    for (size_t i = 1; i < hashes_.size(); ++i) {
      if (hashes_[i].first == hashes_[i - 1].first &&
          document_.String(hashes_[i].second) == document_.String(hashes_[i - 1].second)) {
        FailTwice(hashes_[i].second);
      }
    }
  }

  [[noreturn]] void FailTwice(uint32_t name) const {
    throw InvalidInput(document_.source, fmt::format("{}: found twice, expected every key once",
                                                     QuoteName(document_.String(name))));
  }

  Document& document_;
  const JsonLimits& limits_;
  uint64_t num_nodes_ = 0;
  std::vector<uint32_t> open_;  // Entries of the arrays and objects that are not closed yet.
  std::vector<std::pair<uint32_t, uint32_t>> hashes_;
};

JsonValue::JsonValue(std::shared_ptr<const Document> document, uint32_t at)
    : document_(std::move(document)), at_(at), cursor_{0, at + 2} {}

JsonValue JsonValue::Parse(std::string_view text, const std::string& source,
                           const JsonLimits& limits) {
  return ParseOwned(std::string(text), source, limits);
}

JsonValue JsonValue::ParseOwned(std::string text, const std::string& source,
                                const JsonLimits& limits) {
  const uint64_t max_bytes = std::min<uint64_t>(limits.max_bytes, Document::kPositionMask);
  if (text.size() > max_bytes) {
    throw InvalidInput(
        source, fmt::format("JSON: found {} bytes, expected at most {}", text.size(), max_bytes));
  }
  // The parser would take a NUL byte for the end of the text and ignore what follows.
  const size_t valid = std::min(text.find('\0'), ValidUtf8Prefix(text));
  if (valid < text.size()) {
    throw InvalidInput(source, fmt::format("not valid JSON at byte {}: {}", valid + 1,
                                           text[valid] == '\0' ? "NUL byte" : "not UTF-8"));
  }
  auto document = std::make_shared<Document>();
  document->source = source;
  document->text = std::move(text);
  Builder builder(*document, limits);
  rapidjson::InsituStringStream stream(document->text.data());
  rapidjson::Reader reader;
  constexpr unsigned kFlags = rapidjson::kParseInsituFlag | rapidjson::kParseIterativeFlag |
                              rapidjson::kParseNumbersAsStringsFlag;
  const rapidjson::ParseResult result = reader.Parse<kFlags>(stream, builder);
  if (result.IsError()) {
    throw InvalidInput(source, fmt::format("not valid JSON at byte {}: {}", result.Offset() + 1,
                                           rapidjson::GetParseError_En(result.Code())));
  }
  return JsonValue(std::move(document), 0);
}

JsonValue JsonValue::ParseFile(const std::string& path, const JsonLimits& limits) {
  return ParseOwned(ReadFile(path, limits.max_bytes), path, limits);
}

JsonValue::Kind JsonValue::kind() const {
  if (missing_ != nullptr) return Kind::kNull;
  switch (document_->TagAt(at_)) {
    case Tag::kNull:
      return Kind::kNull;
    case Tag::kFalse:
    case Tag::kTrue:
      return Kind::kBool;
    case Tag::kString:
      return Kind::kString;
    case Tag::kArray:
      return Kind::kArray;
    case Tag::kObject:
      return Kind::kObject;
    case Tag::kNumber:
      break;
  }
  const std::string_view text = document_->Number(at_);
  int64_t value = 0;
  return IsIntegerText(text) && ReadInt(text, &value) ? Kind::kInteger : Kind::kNumber;
}

bool JsonValue::AsBool() const {
  if (!IsBool()) Fail("true or false");
  return document_->TagAt(at_) == Tag::kTrue;
}

int64_t JsonValue::AsInt() const {
  int64_t value = 0;
  if (!IsInteger() || !ReadInt(document_->Number(at_), &value)) Fail("an integer");
  return value;
}

int64_t JsonValue::AsInt(int64_t minimum, int64_t maximum) const {
  int64_t value = 0;
  if (!IsInteger() || !ReadInt(document_->Number(at_), &value) || value < minimum ||
      value > maximum) {
    Fail(fmt::format("an integer from {} to {}", minimum, maximum));
  }
  return value;
}

double JsonValue::AsDouble() const {
  if (IsInteger()) return static_cast<double>(AsInt());
  if (kind() != Kind::kNumber) Fail("a number");
  return ReadDouble(document_->Number(at_));
}

std::string JsonValue::AsString() const { return std::string(AsStringView()); }

std::string_view JsonValue::AsStringView() const {
  if (!IsString()) Fail("a string");
  return document_->String(at_);
}

std::string JsonValue::AsTextOrNumber() const {
  if (IsString()) return AsString();
  if (!IsNumber()) Fail("a string or a number");
  return std::string(document_->Number(at_));
}

bool JsonValue::BoolOr(std::string_view key, bool otherwise) const {
  const JsonValue value = Find(key);
  return value.IsNull() ? otherwise : value.AsBool();
}

bool JsonValue::Has(std::string_view key) const { return !Find(key).IsNull(); }

JsonValue JsonValue::At(std::string_view key) const {
  CheckMembers();
  JsonValue value = Find(key);
  if (value.missing_ != nullptr) value.Fail("a value");
  return value;
}

JsonValue JsonValue::Find(std::string_view key) const {
  if (IsNull()) return Missing(key);
  CheckMembers();
  // From the member behind the last one found to the end, then from the beginning.
  const uint32_t start = cursor_.at;
  std::string_view name;
  uint32_t value = 0;
  while (NextMember(&cursor_, &name, &value)) {
    if (name == key) return JsonValue(document_, value);
  }
  cursor_ = {0, at_ + 2};
  while (cursor_.at != start && NextMember(&cursor_, &name, &value)) {
    if (name == key) return JsonValue(document_, value);
  }
  cursor_ = {0, at_ + 2};
  return Missing(key);
}

JsonValue JsonValue::Missing(std::string_view key) const {
  JsonValue value(document_, at_);
  auto names = missing_ != nullptr ? std::make_shared<std::vector<std::string>>(*missing_)
                                   : std::make_shared<std::vector<std::string>>();
  names->emplace_back(key);
  value.missing_ = std::move(names);
  return value;
}

void JsonValue::CheckMembers() const {
  if (!IsObject()) Fail("an object");
}

// False at the end.
bool JsonValue::NextMember(Cursor* cursor, std::string_view* name, uint32_t* value) const {
  if (cursor->at >= document_->Next(at_)) return false;
  *name = document_->String(cursor->at);
  *value = document_->Next(cursor->at);
  *cursor = {cursor->index + 1, document_->Next(*value)};
  return true;
}

std::vector<std::string> JsonValue::Keys() const {
  std::vector<std::string> keys;
  ForEachMember([&](std::string_view name, const JsonValue&) { keys.emplace_back(name); });
  return keys;
}

size_t JsonValue::size() const {
  if (missing_ != nullptr || !document_->IsContainer(at_)) return 0;
  return document_->tape[at_] & Document::kPositionMask;
}

JsonValue JsonValue::At(size_t index) const {
  if (!IsArray()) Fail("an array");
  const uint32_t end = document_->Next(at_);
  if (index < cursor_.index) cursor_ = {0, at_ + 2};
  while (cursor_.index < index && cursor_.at < end) {
    cursor_ = {cursor_.index + 1, document_->Next(cursor_.at)};
  }
  if (cursor_.at >= end) Fail(fmt::format("at least {} elements", index + 1));
  return JsonValue(document_, cursor_.at);
}

std::vector<int64_t> JsonValue::AsIntArray() const {
  if (!IsArray()) Fail("an array of integers");
  const size_t count = size();
  if (count > limits::kJsonArrayNumbers) {
    Fail(fmt::format("at most {} integers", limits::kJsonArrayNumbers));
  }
  std::vector<int64_t> values;
  values.reserve(count);
  for (size_t i = 0; i < count; ++i) values.push_back(At(i).AsInt());
  return values;
}

std::vector<double> JsonValue::AsDoubleArray() const {
  if (!IsArray()) Fail("an array of numbers");
  const size_t count = size();
  if (count > limits::kJsonArrayNumbers) {
    Fail(fmt::format("at most {} numbers", limits::kJsonArrayNumbers));
  }
  std::vector<double> values;
  values.reserve(count);
  for (size_t i = 0; i < count; ++i) values.push_back(At(i).AsDouble());
  return values;
}

std::string JsonValue::Path() const {
  std::string path;
  document_->AppendPath(at_, &path);
  if (missing_ != nullptr) {
    for (const std::string& name : *missing_) {
      if (!path.empty()) path += '.';
      path += QuoteName(name);
    }
  }
  return path.empty() ? "top level" : path;
}

std::string JsonValue::Where() const { return document_->source + ": " + Path(); }

std::string JsonValue::Found(const std::string& expected) const {
  std::string found = "nothing";
  if (missing_ == nullptr) {
    found.clear();
    document_->Append(at_, 2 * kMaxQuotedBytes, &found);
  }
  return fmt::format("{}: found {}, expected {}", Path(), Cut(std::move(found)), expected);
}

void JsonValue::Fail(const std::string& expected) const {
  throw InvalidInput(document_->source, Found(expected));
}

void JsonValue::Refuse(const std::string& expected) const {
  throw Unsupported(document_->source, Found(expected));
}

std::string JsonValue::Dump() const {
  if (missing_ != nullptr) return "null";
  std::string out;
  document_->Append(at_, std::numeric_limits<size_t>::max(), &out);
  return out;
}

}  // namespace pmkvq
