#include "pmkvq/io/gguf/gguf_value.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/io/utf8.h"

namespace pmkvq {
namespace {

struct TypeRow {
  std::string_view name;
  size_t bytes;
};
constexpr std::array<TypeRow, kNumGgufTypes> kTypes = {{{"u8", 1},
                                                        {"i8", 1},
                                                        {"u16", 2},
                                                        {"i16", 2},
                                                        {"u32", 4},
                                                        {"i32", 4},
                                                        {"f32", 4},
                                                        {"bool", 1},
                                                        {"string", 0},
                                                        {"array", 0},
                                                        {"u64", 8},
                                                        {"i64", 8},
                                                        {"f64", 8}}};

template <class T>
T Load(const std::byte* place) {
  T value;
  std::memcpy(&value, place, sizeof(value));
  return value;
}

// Nothing: not an integer type, or beyond int64_t.
std::optional<int64_t> LoadInt(GgufType type, const std::byte* place) {
  switch (type) {
    case GgufType::kU8:
      return Load<uint8_t>(place);
    case GgufType::kI8:
      return Load<int8_t>(place);
    case GgufType::kU16:
      return Load<uint16_t>(place);
    case GgufType::kI16:
      return Load<int16_t>(place);
    case GgufType::kU32:
      return Load<uint32_t>(place);
    case GgufType::kI32:
      return Load<int32_t>(place);
    case GgufType::kI64:
      return Load<int64_t>(place);
    case GgufType::kU64: {
      const auto value = Load<uint64_t>(place);
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
      return static_cast<int64_t>(value);
    }
    default:
      return std::nullopt;
  }
}

// In words, of a value that is no array.
std::string Show(GgufType type, const std::byte* place) {
  switch (type) {
    case GgufType::kF32:
      return fmt::format("{}", Load<float>(place));
    case GgufType::kF64:
      return fmt::format("{}", Load<double>(place));
    case GgufType::kBool:
      return Load<uint8_t>(place) != 0 ? "true" : "false";
    case GgufType::kU64:
      return fmt::format("{}", Load<uint64_t>(place));
    default:
      return fmt::format("{}", LoadInt(type, place).value_or(0));
  }
}

// The number whose decimal digits the float has: 1e-05, and not 9.99999974737875e-06. The writer
// read it so from the model's config.
double ShortestDouble(float value) {
  if (!std::isfinite(value)) return static_cast<double>(value);
  char digits[32];
  const auto end = std::to_chars(digits, digits + sizeof(digits), value).ptr;
  double result = 0;
  std::from_chars(digits, end, result);
  return result;
}

std::string RangeText(int64_t minimum, int64_t maximum) {
  return fmt::format("an integer from {} to {}", minimum, maximum);
}

}  // namespace

size_t SizeOf(GgufType type) { return kTypes[static_cast<size_t>(type)].bytes; }
std::string_view NameOf(GgufType type) { return kTypes[static_cast<size_t>(type)].name; }

std::string QuotedText(std::string_view text) {
  constexpr size_t kMostBytes = 80;
  std::string shown = "\"";
  for (size_t at = 0; at < text.size();) {
    if (at >= kMostBytes) {
      shown += "...";
      break;
    }
    const Utf8Step step = ScanUtf8(text, at);
    const auto byte = static_cast<unsigned char>(text[at]);
    if (step.kind != Utf8Kind::kValid || byte < 0x20 || byte == 0x7f) {
      for (size_t i = 0; i < step.length; ++i) {
        shown += fmt::format("\\x{:02x}", static_cast<unsigned char>(text[at + i]));
      }
    } else {
      shown += text.substr(at, step.length);
    }
    at += step.length;
  }
  return shown + "\"";
}

std::string GgufValue::Where() const { return std::string(file_) + ": " + key_; }

std::string GgufValue::Found() const {
  if (IsMissing()) return "nothing";
  if (type_ == GgufType::kArray) {
    return fmt::format("an array of {} x {}", size_, NameOf(element_type_));
  }
  if (type_ == GgufType::kString) return QuotedText(StringAt(data_));
  return Show(type_, data_);
}

void GgufValue::Fail(const std::string& expected) const {
  throw InvalidInput(std::string(file_),
                     fmt::format("{}: found {}, expected {}", key_, Found(), expected));
}

void GgufValue::Refuse(const std::string& expected) const {
  throw Unsupported(std::string(file_),
                    fmt::format("{}: found {}, expected {}", key_, Found(), expected));
}

void GgufValue::FailAt(uint64_t index, const std::string& found,
                       const std::string& expected) const {
  throw InvalidInput(std::string(file_),
                     fmt::format("{}[{}]: found {}, expected {}", key_, index, found, expected));
}

bool GgufValue::AsBool() const {
  if (IsMissing() || type_ != GgufType::kBool) Fail("a bool");
  return Load<uint8_t>(data_) != 0;
}

int64_t GgufValue::AsInt(int64_t minimum, int64_t maximum) const {
  const std::optional<int64_t> value = IsMissing() ? std::nullopt : LoadInt(type_, data_);
  if (!value.has_value() || *value < minimum || *value > maximum) {
    Fail(RangeText(minimum, maximum));
  }
  return *value;
}

double GgufValue::AsDouble() const {
  std::optional<double> value;
  if (!IsMissing()) {
    if (type_ == GgufType::kF32) value = ShortestDouble(Load<float>(data_));
    if (type_ == GgufType::kF64) value = Load<double>(data_);
    const std::optional<int64_t> integer = LoadInt(type_, data_);
    if (integer.has_value()) value = static_cast<double>(*integer);
  }
  if (!value.has_value() || !std::isfinite(*value)) Fail("a finite number");
  return *value;
}

std::string_view GgufValue::AsString() const {
  if (!IsString()) Fail("a string");
  const std::string_view text = StringAt(data_);
  if (ValidUtf8Prefix(text) != text.size()) Fail("UTF-8 text");
  return text;
}

void GgufValue::CheckArray(uint64_t expected_size, const std::string& of_what) const {
  if (!IsArray() || size_ != expected_size) {
    Fail(fmt::format("an array of {} {}", expected_size, of_what));
  }
}

int64_t GgufValue::IntAt(uint64_t index, int64_t minimum, int64_t maximum) const {
  if (!IsArray() || SizeOf(element_type_) == 0) Fail("an array of integers");
  PMKVQ_CHECK(index < size_);
  const std::byte* place = data_ + index * SizeOf(element_type_);
  const std::optional<int64_t> value = LoadInt(element_type_, place);
  if (!value.has_value() || *value < minimum || *value > maximum) {
    FailAt(index, Show(element_type_, place), RangeText(minimum, maximum));
  }
  return *value;
}

float GgufValue::FloatAt(uint64_t index) const {
  if (!IsArray() || element_type_ != GgufType::kF32) Fail("an array of f32");
  PMKVQ_CHECK(index < size_);
  return Load<float>(data_ + index * sizeof(float));
}

void GgufValue::CheckStrings() const {
  if (!IsArray() || element_type_ != GgufType::kString) Fail("an array of strings");
}

std::string_view GgufValue::StringAt(const std::byte* place) {
  const auto size = static_cast<size_t>(Load<uint64_t>(place));
  return {reinterpret_cast<const char*>(place + sizeof(uint64_t)), size};
}

}  // namespace pmkvq
