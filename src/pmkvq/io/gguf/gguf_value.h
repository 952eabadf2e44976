// One value of a GGUF file's metadata, read by value and not by type: writers store the same key as
// u32, u64 or i32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace pmkvq {

// As files number them.
enum class GgufType : uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};
inline constexpr uint32_t kNumGgufTypes = 13;

// Bytes of a value; 0 for strings and arrays, whose values say their length.
size_t SizeOf(GgufType type);
// "u32", "string", "array".
std::string_view NameOf(GgufType type);

// Points into its file's bytes, which must outlive it; cheap to copy. A missing value answers
// IsMissing(), and its reads throw.
//
// Reads throw InvalidInput "[file] key: found X, expected Y". Element reads take an index below
// size() (check).
class GgufValue {
 public:
  GgufValue() = default;
  // A key that the file lacks.
  GgufValue(std::string_view file, std::string key) : file_(file), key_(std::move(key)) {}
  // `data`: the value behind its type; of an array the first element.
  GgufValue(std::string_view file, std::string key, GgufType type, GgufType element_type,
            uint64_t size, const std::byte* data)
      : file_(file),
        key_(std::move(key)),
        type_(type),
        element_type_(element_type),
        size_(size),
        data_(data) {}

  const std::string& key() const { return key_; }
  bool IsMissing() const { return data_ == nullptr; }
  bool IsArray() const { return !IsMissing() && type_ == GgufType::kArray; }
  bool IsString() const { return !IsMissing() && type_ == GgufType::kString; }

  bool AsBool() const;
  int64_t AsInt(int64_t minimum, int64_t maximum) const;
  // Finite; of any number type. An f32 is the shortest decimal number that rounds to it, since
  // that is what the model's config has.
  double AsDouble() const;
  std::string_view AsString() const;  // UTF-8.
  bool BoolOr(bool otherwise) const { return IsMissing() ? otherwise : AsBool(); }

  // Arrays. Each checks that this is an array of fitting elements.
  uint64_t size() const { return size_; }
  void CheckArray(uint64_t expected_size, const std::string& of_what) const;
  int64_t IntAt(uint64_t index, int64_t minimum, int64_t maximum) const;
  float FloatAt(uint64_t index) const;  // Of an array of f32; as stored, also NaN.
  // Calls visit(index, text) for every element of an array of strings, as its bytes are.
  template <class Visit>
  void ForEachString(Visit visit) const;

  // "[file] key: found X, expected `expected`", as InvalidInput and as Unsupported (well-formed,
  // but outside of what this program does).
  [[noreturn]] void Fail(const std::string& expected) const;
  [[noreturn]] void Refuse(const std::string& expected) const;
  [[noreturn]] void FailAt(uint64_t index, const std::string& found,
                           const std::string& expected) const;
  std::string Where() const;  // "file: key".
  std::string Found() const;  // What is there, in a few words.

 private:
  void CheckStrings() const;
  static std::string_view StringAt(const std::byte* place);

  std::string_view file_;
  std::string key_;
  GgufType type_ = GgufType::kU8;
  GgufType element_type_ = GgufType::kU8;
  uint64_t size_ = 0;
  const std::byte* data_ = nullptr;
};

template <class Visit>
void GgufValue::ForEachString(Visit visit) const {
  CheckStrings();
  const std::byte* place = data_;
  for (uint64_t i = 0; i < size_; ++i) {
    const std::string_view text = StringAt(place);
    visit(i, text);
    place += sizeof(uint64_t) + text.size();
  }
}

// A text from a file in quotes, on one line, cut where it is long.
std::string QuotedText(std::string_view text);

}  // namespace pmkvq
