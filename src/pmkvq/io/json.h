// JSON in and out, without letting the JSON library into our headers.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace pmkvq {

// A parsed JSON value that knows where it came from, so that a wrong one can be named:
// "[config.json] rope_scaling.factor: found \"x\", expected a number".
// Cheap to copy (shared, immutable).
class JsonValue {
 public:
  enum class Kind { kNull, kBool, kInteger, kNumber, kString, kArray, kObject };

  // `source` is the file name used in errors. Throws InvalidInput with the byte offset of a
  // syntax error. Duplicate keys, NaN, comments and invalid UTF-8 are errors, and so is nesting
  // deeper than 128 levels. An integer beyond int64_t becomes a kNumber. Cost O(n log n).
  static JsonValue Parse(std::string_view text, const std::string& source);
  static JsonValue ParseFile(const std::string& path);

  Kind kind() const;
  bool IsNull() const { return kind() == Kind::kNull; }
  bool IsObject() const { return kind() == Kind::kObject; }
  bool IsArray() const { return kind() == Kind::kArray; }
  bool IsString() const { return kind() == Kind::kString; }
  bool IsNumber() const { return kind() == Kind::kInteger || kind() == Kind::kNumber; }
  bool IsBool() const { return kind() == Kind::kBool; }
  bool IsInteger() const { return kind() == Kind::kInteger; }

  // Typed reads; throw InvalidInput naming source, path, value found and what was expected.
  bool AsBool() const;
  int64_t AsInt() const;  // An integer that fits int64_t.
  int64_t AsInt(int64_t minimum, int64_t maximum) const;
  double AsDouble() const;  // Finite.
  std::string AsString() const;

  // Objects. Has: present and not null. At: throws when missing. Find: a null value when missing
  // (it knows its path, and reads of it throw). Has and Find take null for an empty object. Keys:
  // in file order. A lookup costs O(log members).
  bool Has(const std::string& key) const;
  JsonValue At(const std::string& key) const;
  JsonValue Find(const std::string& key) const;
  std::vector<std::string> Keys() const;

  // Arrays (size() also for objects; 0 otherwise).
  size_t size() const;
  JsonValue At(size_t index) const;
  std::vector<int64_t> AsIntArray() const;
  std::vector<double> AsDoubleArray() const;

  // "source: path"; and an InvalidInput about this value: "<path>: found X, expected <expected>".
  std::string Where() const;
  [[noreturn]] void Fail(const std::string& expected) const;
  // The same as Unsupported: the value is well-formed, but outside of what this program does.
  [[noreturn]] void Refuse(const std::string& expected) const;
  // Compact JSON text of the whole value (errors quote the beginning of it).
  std::string Dump() const;

 private:
  struct Node;
  std::string Found(const std::string& expected) const;
  explicit JsonValue(std::shared_ptr<const Node> node);
  std::shared_ptr<const Node> node_;
};

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
