// Values of a running template: Python's, as far as templates see them. Internal to text/jinja.
//
// Strings record which of their bytes a user wrote, and so do strings that are made from them.
// Lists and dicts never change once they are made: the sandbox of Jinja forbids it. Values charge
// their bytes to a MemoryBudget, which must outlive them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "pmkvq/text/marked_text.h"

namespace pmkvq::jinja {

// Counts the bytes of live values. One thread.
class MemoryBudget {
 public:
  explicit MemoryBudget(int64_t limit_bytes) : limit_bytes_(limit_bytes) {}
  // False when more than the limit would be in use; nothing is charged then.
  [[nodiscard]] bool Charge(int64_t bytes) {
    if (bytes > limit_bytes_ - used_bytes_) return false;
    used_bytes_ += bytes;
    return true;
  }
  void Release(int64_t bytes) { used_bytes_ -= bytes; }
  int64_t limit_bytes() const { return limit_bytes_; }

 private:
  int64_t limit_bytes_;
  int64_t used_bytes_ = 0;
};

// Bytes charged to a budget for as long as this object lives. Without a budget: none.
class MemoryCharge {
 public:
  MemoryCharge() = default;
  MemoryCharge(MemoryBudget* budget, int64_t bytes) : budget_(budget), bytes_(bytes) {}
  MemoryCharge(MemoryCharge&& other) noexcept
      : budget_(std::exchange(other.budget_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  MemoryCharge& operator=(MemoryCharge&& other) noexcept {
    std::swap(budget_, other.budget_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  MemoryCharge(const MemoryCharge&) = delete;
  MemoryCharge& operator=(const MemoryCharge&) = delete;
  ~MemoryCharge() {
    if (budget_ != nullptr) budget_->Release(bytes_);
  }

 private:
  MemoryBudget* budget_ = nullptr;
  int64_t bytes_ = 0;
};

enum class Kind : uint8_t {
  kUndefined,
  kNone,
  kBool,
  kInt,
  kFloat,
  kString,
  kList,
  kTuple,
  kRange,
  kView,       // What dict.items(), keys() and values() give.
  kGenerator,  // What map, select and others give: can be walked once.
  kDict,
  kNamespace,
  kLoop,
  kMacro,
  kFunction,  // A global function.
  kMethod,    // A method and its object.
};

class Value;
struct String;
struct Sequence;
struct Dict;
struct Namespace;
struct Loop;
struct Macro;
struct Function;
struct Method;

class Value {
 public:
  Value() = default;  // Undefined.
  static Value None() { return Value(Kind::kNone); }
  static Value Bool(bool value) {
    Value v(Kind::kBool);
    v.scalar_.integer = value ? 1 : 0;
    return v;
  }
  static Value Int(int64_t value) {
    Value v(Kind::kInt);
    v.scalar_.integer = value;
    return v;
  }
  static Value Float(double value) {
    Value v(Kind::kFloat);
    v.scalar_.number = value;
    return v;
  }
  // `object` is of the type that belongs to the kind. A kUndefined may carry a String: the error
  // message when it is used.
  Value(Kind kind, std::shared_ptr<const void> object) : kind_(kind), object_(std::move(object)) {}

  Kind kind() const { return kind_; }
  bool Is(Kind kind) const { return kind_ == kind; }
  bool IsUndefined() const { return kind_ == Kind::kUndefined; }
  bool IsString() const { return kind_ == Kind::kString; }
  bool IsDict() const { return kind_ == Kind::kDict; }
  // A list, tuple, range, view or generator.
  bool HasItems() const { return kind_ >= Kind::kList && kind_ <= Kind::kGenerator; }
  // Python's bool is an int.
  bool IsInteger() const { return kind_ == Kind::kInt || kind_ == Kind::kBool; }
  bool IsNumber() const { return IsInteger() || kind_ == Kind::kFloat; }

  bool as_bool() const { return scalar_.integer != 0; }
  int64_t as_int() const { return scalar_.integer; }  // Also of a bool.
  double as_double() const {
    return kind_ == Kind::kFloat ? scalar_.number : static_cast<double>(scalar_.integer);
  }
  const String& string() const { return *static_cast<const String*>(object_.get()); }
  const Sequence& sequence() const { return *static_cast<const Sequence*>(object_.get()); }
  const Dict& dict() const { return *static_cast<const Dict*>(object_.get()); }
  Namespace& name_space() const { return *Mutable<Namespace>(); }
  Loop& loop() const { return *Mutable<Loop>(); }
  const Macro& macro() const { return *static_cast<const Macro*>(object_.get()); }
  const Function& function() const { return *static_cast<const Function*>(object_.get()); }
  const Method& method() const { return *static_cast<const Method*>(object_.get()); }
  const std::shared_ptr<const void>& object() const { return object_; }

 private:
  explicit Value(Kind kind) : kind_(kind) {}
  template <class T>
  T* Mutable() const {
    return static_cast<T*>(const_cast<void*>(object_.get()));
  }

  Kind kind_ = Kind::kUndefined;
  union {
    int64_t integer = 0;
    double number;
  } scalar_;
  std::shared_ptr<const void> object_;
};

// A string as values hold it. `text.input` as in MarkedText.
struct String {
  MarkedText text;
  bool is_markup = false;  // markupsafe's Markup: adding a plain string to it escapes that string.
  MemoryCharge charge;

  std::string_view view() const { return text.text; }
};

// What has items: lists, tuples, ranges, views and generators.
struct Sequence {
  std::vector<Value> items;
  int depth = 1;  // 1 more than that of the deepest item.
  // How a range or a view prints: "range(0, 3)", "dict_keys". Empty for others.
  std::string label;
  mutable size_t num_taken = 0;  // Items of a generator that were walked.
  MemoryCharge charge;
};

// A dict in the order of insertion. Keys are strings, numbers, bools or none.
struct Dict {
  std::vector<std::pair<Value, Value>> items;
  int depth = 1;
  MemoryCharge charge;

  // The value of a key, or nullptr. Equal numbers of different kinds are the same key.
  const Value* Find(const Value& key) const;
  const Value* Find(std::string_view key) const;
  void Set(const Value& key, const Value& value);

 private:
  std::unordered_map<std::string, size_t> index_;  // KeyText -> place; only for larger dicts.
  const Value* FindText(const std::string& text) const;
};

// namespace(): the one object that templates may change.
struct Namespace {
  std::vector<std::pair<std::string, Value>> members;

  Value* Find(std::string_view name);
};

// Whether a value can be a key of Dict, as Python can hash it: strings, numbers, bools, none,
// undefined, and tuples of these.
bool IsHashable(const Value& value);
// A text that is the same for equal keys and for no others.
std::string KeyText(const Value& key);

// How deep a value nests: 0 for scalars and strings.
int DepthOf(const Value& value);

// "str", "int", "dict", ... as Python's errors name it.
std::string_view TypeName(const Value& value);

bool IsTrue(const Value& value);

}  // namespace pmkvq::jinja
