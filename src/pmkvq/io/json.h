// JSON in and out, without letting the JSON library into our headers.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "pmkvq/io/limits.h"

namespace pmkvq {

// Bounds of one JSON text; its errors name what was exceeded.
struct JsonLimits {
  uint64_t max_bytes = limits::kFileBytes;  // At most 512 MiB: positions have 29 bits.
  uint64_t max_nodes = limits::kJsonNodes;  // Values, without member names.
  size_t max_depth = limits::kJsonDepth;    // Arrays and objects inside each other.
};

// A parsed JSON value that knows where it came from, so that a wrong one can be named:
// "[config.json] rope_scaling.factor: found \"x\", expected a number".
//
// Lifetime: a value keeps the whole document alive; it is cheap to copy (shared, immutable). The
// document is the text, in which strings are decoded in place, and 4 to 12 bytes per value.
// Threads: one JsonValue remembers the child that was read last, which makes reading children in
// order cheap, so that one object is for one thread; copies of it are independent.
class JsonValue {
 public:
  enum class Kind { kNull, kBool, kInteger, kNumber, kString, kArray, kObject };

  // `source` is the file name used in errors. Throws InvalidInput with the byte position of a
  // syntax error. Duplicate keys, NaN, comments, invalid UTF-8 and numbers beyond double are
  // errors, and so is a text beyond `limits`. An integer beyond int64_t becomes a kNumber.
  static JsonValue Parse(std::string_view text, const std::string& source,
                         const JsonLimits& limits = {});
  // The same without a copy of the text.
  static JsonValue ParseOwned(std::string text, const std::string& source,
                              const JsonLimits& limits = {});
  static JsonValue ParseFile(const std::string& path, const JsonLimits& limits = {});

  Kind kind() const;
  bool IsNull() const { return kind() == Kind::kNull; }
  bool IsObject() const { return kind() == Kind::kObject; }
  bool IsArray() const { return kind() == Kind::kArray; }
  bool IsString() const { return kind() == Kind::kString; }
  bool IsNumber() const { return kind() == Kind::kInteger || kind() == Kind::kNumber; }
  bool IsBool() const { return kind() == Kind::kBool; }
  bool IsInteger() const { return kind() == Kind::kInteger; }
  // What Find() answers for a key that is not there; a null that the file writes is not missing.
  bool IsMissing() const { return missing_ != nullptr; }

  // Typed reads; throw InvalidInput naming source, path, value found and what was expected.
  bool AsBool() const;
  int64_t AsInt() const;  // An integer that fits int64_t.
  int64_t AsInt(int64_t minimum, int64_t maximum) const;
  double AsDouble() const;  // Finite.
  std::string AsString() const;
  std::string_view AsStringView() const;  // Valid as long as any value of the document.
  // A string as it is, or a number as the file spells it ("1.50", "12345678901234567890"), which
  // neither int64_t nor double could give back.
  std::string AsTextOrNumber() const;

  // Objects. Has: present and not null. At: throws when missing. Find: a null value when missing
  // (it knows its path, and reads of it throw). Has and Find take null for an empty object. Keys:
  // in file order. A lookup is O(members), and O(1) for the member behind the last one found.
  bool Has(std::string_view key) const;
  JsonValue At(std::string_view key) const;
  JsonValue Find(std::string_view key) const;
  std::vector<std::string> Keys() const;
  // The boolean of `key`; `otherwise` where it is missing or null.
  bool BoolOr(std::string_view key, bool otherwise) const;
  // Calls visit(name, value) for every member in file order, without a copy of the names.
  template <class Visit>
  void ForEachMember(Visit visit) const;

  // Arrays (size() also for objects; 0 otherwise). At: O(1) for the element behind the last one
  // read, else O(index). The last two take at most limits::kJsonArrayNumbers.
  size_t size() const;
  JsonValue At(size_t index) const;
  std::vector<int64_t> AsIntArray() const;
  std::vector<double> AsDoubleArray() const;

  // "source: path"; and an InvalidInput about this value: "<path>: found X, expected <expected>".
  std::string Where() const;
  [[noreturn]] void Fail(const std::string& expected) const;
  // The same as Unsupported: the value is well-formed, but outside of what this program does.
  [[noreturn]] void Refuse(const std::string& expected) const;
  // Compact JSON text of the whole value, numbers as the file spells them (errors quote the
  // beginning of it).
  std::string Dump() const;

 private:
  struct Document;
  class Builder;
  // Where the child `index` (of an object: its name) stands in the tape.
  struct Cursor {
    uint32_t index = 0;
    uint32_t at = 0;
  };

  JsonValue(std::shared_ptr<const Document> document, uint32_t at);
  JsonValue Missing(std::string_view key) const;
  void CheckMembers() const;  // Throws unless this is an object.
  bool NextMember(Cursor* cursor, std::string_view* name, uint32_t* value) const;
  std::string Found(const std::string& expected) const;
  std::string Path() const;

  std::shared_ptr<const Document> document_;
  uint32_t at_ = 0;  // Of a missing value: of its nearest ancestor that is there.
  mutable Cursor cursor_;
  std::shared_ptr<const std::vector<std::string>> missing_;  // Names below at_; null: it is there.
};

template <class Visit>
void JsonValue::ForEachMember(Visit visit) const {
  CheckMembers();
  Cursor cursor{0, at_ + 2};
  std::string_view name;
  uint32_t value = 0;
  while (NextMember(&cursor, &name, &value)) visit(name, JsonValue(document_, value));
}

// Builds JSON text in order. Numbers are written so that they read back to the same double
// (shortest form); NaN and infinity become null.
//
//   JsonWriter json;
//   json.BeginObject().Key("bits").Array(bits).Key("loss").Number(0.25).EndObject();
//   json.text();
class JsonWriter {
 public:
  // `indent` < 0: one line.
  explicit JsonWriter(int indent = -1);
  ~JsonWriter();
  JsonWriter(const JsonWriter&) = delete;
  JsonWriter& operator=(const JsonWriter&) = delete;

  JsonWriter& BeginObject();
  JsonWriter& EndObject();
  JsonWriter& BeginArray();
  JsonWriter& EndArray();
  JsonWriter& Key(std::string_view key);
  JsonWriter& String(std::string_view value);  // Invalid UTF-8 is replaced by U+FFFD.
  JsonWriter& Int(int64_t value);
  JsonWriter& Number(double value);
  JsonWriter& Bool(bool value);
  JsonWriter& Null();

  // Arrays of numbers, on one line even when indenting.
  JsonWriter& Array(const std::vector<int64_t>& values);
  JsonWriter& Array(const std::vector<int32_t>& values);
  JsonWriter& Array(const std::vector<double>& values);

  // The text; every Begin must have had its End.
  std::string text() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pmkvq
