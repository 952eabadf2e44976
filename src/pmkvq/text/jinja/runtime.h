// What every part of a running template needs: bounds, errors with their line, and the making of
// values. Internal to text/jinja. One thread, one rendering.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "pmkvq/text/jinja/limits.h"
#include "pmkvq/text/jinja/value.h"

namespace pmkvq::jinja {

class Runtime {
 public:
  // `source` names the template in errors; it must outlive this object.
  Runtime(const Limits& limits, const std::string& source)
      : limits_(limits), source_(source), budget_(limits.max_memory_bytes) {}
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  const Limits& limits() const { return limits_; }
  void set_line(int line) { line_ = line; }

  // Throws InvalidInput: "[source] line N: message".
  [[noreturn]] void Fail(const std::string& message) const;

  // Counts `count` steps; throws past the limit.
  void Step(int64_t count = 1) {
    steps_ += count;
    if (steps_ > limits_.max_steps) FailSteps();
  }
  // Counts the work of copying or searching.
  void StepBytes(size_t bytes) { Step(static_cast<int64_t>(bytes / 64)); }
  void StepItems(size_t items) { Step(static_cast<int64_t>(items / 8)); }

  // One level of recursion through namespaces, which lists do not bound. Throws past the limit.
  class Recursion {
   public:
    explicit Recursion(Runtime& runtime) : runtime_(runtime) {
      if (runtime.recursion_ >= runtime.limits_.max_value_depth) {
        runtime.Fail("namespaces are nested too deep");
      }
      ++runtime.recursion_;
    }
    ~Recursion() { --runtime_.recursion_; }
    Recursion(const Recursion&) = delete;
    Recursion& operator=(const Recursion&) = delete;

   private:
    Runtime& runtime_;
  };

  // Charges bytes; throws past the limit.
  MemoryCharge Charge(size_t bytes);

  // A string of the template; and one as a builder or a caller made it.
  Value Text(std::string_view text);
  Value Text(MarkedText text, bool is_markup);
  // A kList, kTuple, kRange, kView or kGenerator.
  Value Items(Kind kind, std::vector<Value> items, std::string label = "");
  Value List(std::vector<Value> items) { return Items(Kind::kList, std::move(items)); }
  Value FromDict(Dict dict);
  Value BoundMethod(const Value& object, const std::string& name);
  // Undefined; `hint` is the error message when it is used.
  Value Undefined(const std::string& hint);

  // Throws with the hint of an undefined value.
  [[noreturn]] void FailUndefined(const Value& undefined) const;

  // The items that walking a value gives: items, characters, keys. A generator is used up. Throws
  // for values that have no items.
  std::shared_ptr<const Sequence> Walk(const Value& value);
  // Python's len(). Throws for values without a length.
  int64_t Length(const Value& value);

 private:
  [[noreturn]] void FailSteps() const;

  const Limits limits_;
  const std::string& source_;
  MemoryBudget budget_;
  int64_t steps_ = 0;
  int recursion_ = 0;
  int line_ = 1;
};

// Puts a string together, and keeps the marks of its parts.
class StringBuilder {
 public:
  // `max_bytes`: 0 for no limit but the memory's.
  explicit StringBuilder(Runtime& runtime, int64_t max_bytes = 0)
      : runtime_(runtime), max_bytes_(max_bytes) {}

  void Append(std::string_view text, bool is_input = false);
  void Append(const String& text) { Append(text, 0, text.view().size()); }
  void Append(const String& text, size_t begin, size_t end);
  // One character in place of those at `text`[begin]: marked as that one.
  void AppendAs(const String& text, size_t begin, std::string_view character);
  size_t size() const { return text_.text.size(); }

  Value Take(bool is_markup = false);
  MarkedText TakeText() { return std::move(text_); }

 private:
  void Grow(size_t bytes);
  void Mark(size_t begin, size_t end);

  Runtime& runtime_;
  int64_t max_bytes_;
  MarkedText text_;
  size_t charged_ = 0;
  size_t uncounted_bytes_ = 0;  // Of work, too little for a step so far.
  MemoryCharge charge_;
};

// The bytes [begin, end) of a string, as a string of the same kind.
Value Substring(Runtime& runtime, const String& text, size_t begin, size_t end);

}  // namespace pmkvq::jinja
