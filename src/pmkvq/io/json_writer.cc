#include <string>
#include <vector>

#include "pmkvq/base/check.h"
#include "pmkvq/io/json.h"
#include "pmkvq/io/json_text.h"

namespace pmkvq {

struct JsonWriter::Impl {
  struct Level {
    bool is_object;
    bool empty = true;
  };

  int indent;
  std::string out;
  std::vector<Level> levels;
  bool after_key = false;

  void NewLine() {
    if (indent < 0) return;
    out += '\n';
    out.append(levels.size() * static_cast<size_t>(indent), ' ');
  }

  // Separates an element (a key, or a value that has no key) from the one before it.
  void Separate() {
    if (levels.empty()) {
      PMKVQ_CHECK_MSG(out.empty(), "JSON text has one top-level value");
      return;
    }
    if (!levels.back().empty) out += ',';
    levels.back().empty = false;
    NewLine();
  }

  void BeforeValue() {
    if (after_key) {
      after_key = false;
      return;
    }
    PMKVQ_CHECK_MSG(levels.empty() || !levels.back().is_object, "a value in an object needs a key");
    Separate();
  }

  void Begin(bool is_object) {
    BeforeValue();
    out += is_object ? '{' : '[';
    levels.push_back({is_object});
  }

  void End(bool is_object) {
    PMKVQ_CHECK_MSG(!levels.empty() && levels.back().is_object == is_object && !after_key,
                    "unbalanced JSON");
    const bool empty = levels.back().empty;
    levels.pop_back();
    if (!empty) NewLine();
    out += is_object ? '}' : ']';
  }

  template <class T, class Append>
  void FlatArray(const std::vector<T>& values, Append append) {
    BeforeValue();
    out += '[';
    for (size_t i = 0; i < values.size(); ++i) {
      if (i > 0) out += indent < 0 ? "," : ", ";
      append(values[i]);
    }
    out += ']';
  }
};

JsonWriter::JsonWriter(int indent) : impl_(std::make_unique<Impl>()) { impl_->indent = indent; }
JsonWriter::~JsonWriter() = default;

JsonWriter& JsonWriter::BeginObject() {
  impl_->Begin(true);
  return *this;
}

JsonWriter& JsonWriter::EndObject() {
  impl_->End(true);
  return *this;
}

JsonWriter& JsonWriter::BeginArray() {
  impl_->Begin(false);
  return *this;
}

JsonWriter& JsonWriter::EndArray() {
  impl_->End(false);
  return *this;
}

JsonWriter& JsonWriter::Key(std::string_view key) {
  PMKVQ_CHECK_MSG(!impl_->levels.empty() && impl_->levels.back().is_object && !impl_->after_key,
                  "a key belongs into an object");
  impl_->Separate();
  internal::AppendJsonString(impl_->out, key);
  impl_->out += impl_->indent < 0 ? ":" : ": ";
  impl_->after_key = true;
  return *this;
}

JsonWriter& JsonWriter::String(std::string_view value) {
  impl_->BeforeValue();
  internal::AppendJsonString(impl_->out, value);
  return *this;
}

JsonWriter& JsonWriter::Int(int64_t value) {
  impl_->BeforeValue();
  impl_->out += std::to_string(value);
  return *this;
}

JsonWriter& JsonWriter::Number(double value) {
  impl_->BeforeValue();
  internal::AppendJsonNumber(impl_->out, value);
  return *this;
}

JsonWriter& JsonWriter::Bool(bool value) {
  impl_->BeforeValue();
  impl_->out += value ? "true" : "false";
  return *this;
}

JsonWriter& JsonWriter::Null() {
  impl_->BeforeValue();
  impl_->out += "null";
  return *this;
}

JsonWriter& JsonWriter::Array(const std::vector<int64_t>& values) {
  impl_->FlatArray(values, [this](int64_t value) { impl_->out += std::to_string(value); });
  return *this;
}

JsonWriter& JsonWriter::Array(const std::vector<int32_t>& values) {
  impl_->FlatArray(values, [this](int32_t value) { impl_->out += std::to_string(value); });
  return *this;
}

JsonWriter& JsonWriter::Array(const std::vector<double>& values) {
  impl_->FlatArray(values, [this](double value) { internal::AppendJsonNumber(impl_->out, value); });
  return *this;
}

std::string JsonWriter::text() const {
  PMKVQ_CHECK_MSG(impl_->levels.empty() && !impl_->out.empty(), "unfinished JSON");
  return impl_->out;
}

}  // namespace pmkvq
