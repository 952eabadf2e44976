#include "pmkvq/text/jinja/runtime.h"

#include <fmt/format.h>

#include <algorithm>

#include "pmkvq/base/error.h"
#include "pmkvq/text/jinja/objects.h"
#include "pmkvq/text/jinja/unicode.h"

namespace pmkvq::jinja {
namespace {

// What an object costs besides its contents: its shared pointer, and the allocator's share.
constexpr size_t kObjectBytes = 64;

size_t BytesOf(const MarkedText& text) {
  return text.text.capacity() + text.input.capacity() * sizeof(ByteRange) + sizeof(String) +
         kObjectBytes;
}

}  // namespace

void Runtime::Fail(const std::string& message) const {
  throw InvalidInput(source_, fmt::format("line {}: {}", line_, OneLine(message)));
}

void Runtime::FailSteps() const {
  Fail(fmt::format("the template takes more than {} steps", limits_.max_steps));
}

MemoryCharge Runtime::Charge(size_t bytes) {
  if (bytes > static_cast<size_t>(limits_.max_memory_bytes) ||
      !budget_.Charge(static_cast<int64_t>(bytes))) {
    Fail(fmt::format("the template takes more than {} bytes of memory", limits_.max_memory_bytes));
  }
  return {&budget_, static_cast<int64_t>(bytes)};
}

Value Runtime::Text(std::string_view text) { return Text({std::string(text), {}}, false); }

Value Runtime::Text(MarkedText text, bool is_markup) {
  auto string = std::make_shared<String>();
  string->charge = Charge(BytesOf(text));
  string->text = std::move(text);
  string->is_markup = is_markup;
  return {Kind::kString, std::move(string)};
}

Value Runtime::Items(Kind kind, std::vector<Value> items, std::string label) {
  StepItems(items.size());
  auto sequence = std::make_shared<Sequence>();
  sequence->charge = Charge(items.capacity() * sizeof(Value) + sizeof(Sequence) + kObjectBytes);
  for (const Value& item : items) sequence->depth = std::max(sequence->depth, DepthOf(item) + 1);
  if (sequence->depth > limits_.max_value_depth) {
    Fail(fmt::format("a list is nested more than {} levels deep", limits_.max_value_depth));
  }
  sequence->items = std::move(items);
  sequence->label = std::move(label);
  return {kind, std::move(sequence)};
}

Value Runtime::FromDict(Dict dict) {
  StepItems(dict.items.size());
  if (dict.depth > limits_.max_value_depth) {
    Fail(fmt::format("a dict is nested more than {} levels deep", limits_.max_value_depth));
  }
  dict.charge = Charge(dict.items.size() * (2 * sizeof(Value) + 96) + sizeof(Dict) + kObjectBytes);
  return {Kind::kDict, std::make_shared<Dict>(std::move(dict))};
}

Value Runtime::BoundMethod(const Value& object, const std::string& name) {
  auto method = std::make_shared<Method>();
  method->charge = Charge(sizeof(Method) + kObjectBytes);
  method->object = object;
  method->name = name;
  const Value value(Kind::kMethod, std::move(method));
  if (DepthOf(value) > limits_.max_value_depth) {
    Fail(fmt::format("methods are nested more than {} levels deep", limits_.max_value_depth));
  }
  return value;
}

Value Runtime::Undefined(const std::string& hint) {
  return {Kind::kUndefined, Text(hint).object()};
}

void Runtime::FailUndefined(const Value& undefined) const {
  if (undefined.object() == nullptr) Fail("the value is undefined");
  Fail(std::string(undefined.string().view()));
}

std::shared_ptr<const Sequence> Runtime::Walk(const Value& value) {
  const auto make = [&](std::vector<Value> items) {
    return std::static_pointer_cast<const Sequence>(List(std::move(items)).object());
  };
  switch (value.kind()) {
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kRange:
    case Kind::kView:
      return std::static_pointer_cast<const Sequence>(value.object());
    case Kind::kGenerator: {
      const Sequence& all = value.sequence();
      std::vector<Value> rest(all.items.begin() + static_cast<ptrdiff_t>(all.num_taken),
                              all.items.end());
      all.num_taken = all.items.size();
      return make(std::move(rest));
    }
    case Kind::kDict: {
      std::vector<Value> keys;
      keys.reserve(value.dict().items.size());
      for (const auto& [key, item] : value.dict().items) keys.push_back(key);
      return make(std::move(keys));
    }
    case Kind::kString: {
      std::vector<Value> characters;
      const String& text = value.string();
      for (size_t i = 0; i < text.view().size();) {
        const size_t length = CharacterBytes(text.view(), i);
        Step();
        String character;  // Walking Markup gives plain strings.
        StringBuilder builder(*this);
        builder.Append(text, i, i + length);
        characters.push_back(builder.Take());
        i += length;
      }
      return make(std::move(characters));
    }
    case Kind::kUndefined:
      return make({});
    default:
      Fail(fmt::format("'{}' object is not iterable", TypeName(value)));
  }
}

int64_t Runtime::Length(const Value& value) {
  switch (value.kind()) {
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kRange:
    case Kind::kView:
      return static_cast<int64_t>(value.sequence().items.size());
    case Kind::kDict:
      return static_cast<int64_t>(value.dict().items.size());
    case Kind::kString:
      StepBytes(value.string().view().size());
      return CountCharacters(value.string().view());
    case Kind::kUndefined:
      return 0;
    case Kind::kLoop:
      return value.loop().Length();
    default:
      Fail(fmt::format("object of type '{}' has no len()", TypeName(value)));
  }
}

void StringBuilder::Grow(size_t bytes) {
  // Each call costs as much as 8 bytes.
  uncounted_bytes_ += bytes + 8;
  if (uncounted_bytes_ >= 64) {
    runtime_.StepBytes(uncounted_bytes_);
    uncounted_bytes_ %= 64;
  }
  const size_t size = text_.text.size() + bytes;
  if (max_bytes_ > 0 && size > static_cast<size_t>(max_bytes_)) {
    runtime_.Fail(fmt::format("the prompt takes more than {} bytes", max_bytes_));
  }
  const size_t needed = size + text_.input.size() * sizeof(ByteRange);
  if (needed <= charged_) return;
  // Charged in steps that double, as the memory is allocated.
  const size_t wanted = std::max<size_t>(needed, charged_ + charged_ / 2);
  charge_ = MemoryCharge();
  charge_ = runtime_.Charge(wanted);
  charged_ = wanted;
}

void StringBuilder::Mark(size_t begin, size_t end) {
  if (begin == end) return;
  if (!text_.input.empty() && text_.input.back().end == begin) {
    text_.input.back().end = end;
  } else {
    text_.input.push_back({begin, end});
  }
}

void StringBuilder::Append(std::string_view text, bool is_input) {
  Grow(text.size());
  if (is_input) Mark(size(), size() + text.size());
  text_.text += text;
}

void StringBuilder::Append(const String& text, size_t begin, size_t end) {
  const std::vector<ByteRange>& input = text.text.input;
  Grow(end - begin);
  auto range = std::partition_point(input.begin(), input.end(),
                                    [&](const ByteRange& r) { return r.end <= begin; });
  for (; range != input.end() && range->begin < end; ++range) {
    Mark(size() + std::max(range->begin, begin) - begin,
         size() + std::min(range->end, end) - begin);
  }
  text_.text += text.view().substr(begin, end - begin);
}

void StringBuilder::AppendAs(const String& text, size_t begin, std::string_view character) {
  const std::vector<ByteRange>& input = text.text.input;
  const auto range = std::partition_point(input.begin(), input.end(),
                                          [&](const ByteRange& r) { return r.end <= begin; });
  Append(character, range != input.end() && range->begin <= begin);
}

Value StringBuilder::Take(bool is_markup) {
  charge_ = MemoryCharge();
  charged_ = 0;
  return runtime_.Text(std::exchange(text_, {}), is_markup);
}

Value Substring(Runtime& runtime, const String& text, size_t begin, size_t end) {
  StringBuilder builder(runtime);
  builder.Append(text, begin, end);
  return builder.Take(text.is_markup);
}

const Value* Arguments::Find(size_t index, std::string_view name) const {
  if (index < positional.size()) return &positional[index];
  for (const auto& [key, value] : named) {
    if (key == name) return &value;
  }
  return nullptr;
}

void Arguments::Check(const Runtime& runtime, std::string_view function,
                      std::initializer_list<std::string_view> names) const {
  if (positional.size() > names.size()) {
    runtime.Fail(fmt::format("{}() takes at most {} arguments, found {}", function, names.size(),
                             positional.size()));
  }
  for (const auto& [name, value] : named) {
    const auto at = std::find(names.begin(), names.end(), name);
    if (at == names.end()) {
      runtime.Fail(fmt::format("{}() has no argument \"{}\"", function, name));
    }
    if (static_cast<size_t>(at - names.begin()) < positional.size()) {
      runtime.Fail(fmt::format("{}() is given \"{}\" twice", function, name));
    }
  }
}

const Value* Loop::Peek() {
  while (!next && num_seen < items->items.size()) {
    const Value& item = items->items[num_seen++];
    if (!filter || filter(item)) next = item;
  }
  return next ? &*next : nullptr;
}

bool Loop::Advance() {
  if (Peek() == nullptr) return false;
  previous = current;
  current = *next;
  next.reset();
  ++index0;
  return true;
}

int64_t Loop::Length() {
  if (length) return *length;
  if (!filter) {
    length = static_cast<int64_t>(items->items.size());
    return *length;
  }
  // Python makes a list of the rest: the filter is asked now for all of it.
  const Value* after = Peek();
  auto rest = std::make_shared<Sequence>();
  if (after != nullptr) rest->items.push_back(*after);
  while (num_seen < items->items.size()) {
    const Value& item = items->items[num_seen++];
    if (filter(item)) rest->items.push_back(item);
  }
  next.reset();
  items = std::move(rest);
  num_seen = 0;
  filter = nullptr;
  length = index0 + 1 + static_cast<int64_t>(items->items.size());
  return *length;
}

}  // namespace pmkvq::jinja
