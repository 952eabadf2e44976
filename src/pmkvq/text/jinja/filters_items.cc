// Filters that work on lists, tuples, dicts, strings and generators.
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <set>

#include "pmkvq/text/jinja/filters.h"
#include "pmkvq/text/jinja/operators.h"
#include "pmkvq/text/jinja/parameters.h"
#include "pmkvq/text/jinja/string_methods.h"
#include "pmkvq/text/jinja/text_of.h"
#include "pmkvq/text/jinja/unicode.h"

namespace pmkvq::jinja {
namespace {

using Items = std::vector<Value>;

// Takes the attribute "a.b.0" of a value, part by part.
class AttributePath {
 public:
  // `attribute`: a string, an integer, or none for the value itself.
  AttributePath(Interpreter& interpreter, const Value& attribute) : interpreter_(interpreter) {
    if (attribute.Is(Kind::kNone)) return;
    if (!attribute.IsString()) {
      parts_.push_back(attribute);
      return;
    }
    const std::string_view text = attribute.string().view();
    for (size_t begin = 0; begin <= text.size();) {
      const size_t end = std::min(text.find('.', begin), text.size());
      const std::string_view part = text.substr(begin, end - begin);
      const bool is_number = !part.empty() && part.size() <= 18 &&
                             part.find_first_not_of("0123456789") == std::string_view::npos;
      parts_.push_back(is_number ? Value::Int(std::stoll(std::string(part)))
                                 : interpreter.Text(part));
      begin = end + 1;
    }
  }

  // `otherwise` stands for undefined parts where it is not null.
  Value Of(Value value, const Value* otherwise = nullptr) const {
    for (const Value& part : parts_) {
      value = Item(interpreter_, value, part);
      if (otherwise != nullptr && value.IsUndefined()) value = *otherwise;
    }
    return value;
  }

 private:
  Interpreter& interpreter_;
  Items parts_;
};

// Strings in lower case; other values as they are.
Value IgnoreCase(Interpreter& interpreter, const Value& value, bool case_sensitive) {
  if (case_sensitive || !value.IsString()) return value;
  return ChangeCase(interpreter, value.string(), Case::kLower);
}

struct Keyed {
  Value key;
  Value item;
};

// Sorts by keys, keeping the order of equal ones, also backwards.
void SortByKey(Interpreter& interpreter, std::vector<Keyed>* items, bool reverse) {
  interpreter.StepItems(items->size());
  std::stable_sort(items->begin(), items->end(), [&](const Keyed& a, const Keyed& b) {
    return reverse ? Less(interpreter, b.key, a.key) : Less(interpreter, a.key, b.key);
  });
}

Items ItemsOf(std::vector<Keyed> keyed) {
  Items items;
  items.reserve(keyed.size());
  for (Keyed& one : keyed) items.push_back(std::move(one.item));
  return items;
}

Value Generator(Interpreter& interpreter, Items items) {
  return interpreter.Items(Kind::kGenerator, std::move(items));
}

// The arguments behind the first `count` ones.
Arguments Behind(const Arguments& arguments, size_t count) {
  Arguments rest;
  rest.positional.assign(arguments.positional.begin() + static_cast<ptrdiff_t>(count),
                         arguments.positional.end());
  rest.named = arguments.named;
  return rest;
}

// select, reject, selectattr and rejectattr.
Value Choose(Interpreter& interpreter, const Value& value, const Arguments& arguments,
             bool by_attribute, bool wanted) {
  if (!IsTrue(value)) return Generator(interpreter, {});
  size_t used = 0;
  if (by_attribute && arguments.positional.empty()) {
    interpreter.Fail("missing parameter for attribute name");
  }
  const AttributePath path(interpreter,
                           by_attribute ? arguments.positional[used++] : Value::None());
  TestFunction test = nullptr;
  if (used < arguments.positional.size()) {
    const Value& name = arguments.positional[used++];
    if (name.IsString()) test = FindTest(name.string().view());
    if (test == nullptr) {
      interpreter.Fail(fmt::format("there is no test named {}",
                                   TextOf(interpreter, name).string().view().substr(0, 40)));
    }
  }
  const Arguments rest = Behind(arguments, used);
  Items chosen;
  const std::shared_ptr<const Sequence> walked = interpreter.Walk(value);
  for (const Value& item : walked->items) {
    interpreter.Step();
    const Value subject = path.Of(item);
    const bool holds = test != nullptr ? test(interpreter, subject, rest) : IsTrue(subject);
    if (holds == wanted) chosen.push_back(item);
  }
  return Generator(interpreter, std::move(chosen));
}

Value Extreme(Interpreter& interpreter, const Value& value, const Arguments& arguments,
              bool largest) {
  const Parameters parameters(interpreter, arguments, largest ? "max" : "min",
                              {"case_sensitive", "attribute"});
  const AttributePath path(interpreter, parameters.Or(1, Value::None()));
  const bool case_sensitive = parameters.Truth(0, false);
  const std::shared_ptr<const Sequence> items = interpreter.Walk(value);
  if (items->items.empty()) {
    return interpreter.Undefined("No aggregated item, sequence was empty.");
  }
  const Value* best = nullptr;
  Value best_key;
  for (const Value& item : items->items) {
    Value key = IgnoreCase(interpreter, path.Of(item), case_sensitive);
    const bool is_better = best == nullptr || (largest ? Less(interpreter, best_key, key, ">")
                                                       : Less(interpreter, key, best_key));
    if (!is_better) continue;
    best = &item;
    best_key = std::move(key);
  }
  return *best;
}

}  // namespace

Value FilterLength(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters none(interpreter, arguments, "length", {});
  return Value::Int(interpreter.Length(value));
}

Value FilterList(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters none(interpreter, arguments, "list", {});
  if (value.Is(Kind::kList)) return value;
  return interpreter.List(interpreter.Walk(value)->items);
}

Value FilterFirst(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters none(interpreter, arguments, "first", {});
  if (value.Is(Kind::kGenerator)) {
    const Sequence& items = value.sequence();
    if (items.num_taken < items.items.size()) return items.items[items.num_taken++];
  } else if (value.IsString()) {
    if (!value.string().view().empty()) return Item(interpreter, value, Value::Int(0));
  } else {
    const std::shared_ptr<const Sequence> items = interpreter.Walk(value);
    if (!items->items.empty()) return items->items.front();
  }
  return interpreter.Undefined("No first item, sequence was empty.");
}

Value FilterLast(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters none(interpreter, arguments, "last", {});
  if (value.Is(Kind::kGenerator)) interpreter.Fail("'generator' object is not reversible");
  if (value.IsString()) {
    if (!value.string().view().empty()) return Item(interpreter, value, Value::Int(-1));
  } else {
    const std::shared_ptr<const Sequence> items = interpreter.Walk(value);
    if (!items->items.empty()) return items->items.back();
  }
  return interpreter.Undefined("No last item, sequence was empty.");
}

Value FilterJoin(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters parameters(interpreter, arguments, "join", {"d", "attribute"});
  const Value separator = TextOf(interpreter, parameters.Or(0, interpreter.Text("")));
  const AttributePath path(interpreter, parameters.Or(1, Value::None()));
  Items items = interpreter.Walk(value)->items;
  for (Value& item : items) item = path.Of(item);
  return Join(interpreter, separator.string(), items);
}

Value FilterReverse(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters none(interpreter, arguments, "reverse", {});
  if (value.IsString()) {
    return Slice(interpreter, value, Value::None(), Value::None(), Value::Int(-1));
  }
  Items items = interpreter.Walk(value)->items;
  std::reverse(items.begin(), items.end());
  // Python makes a list of a generator and an iterator of the rest.
  return value.Is(Kind::kGenerator) ? interpreter.List(std::move(items))
                                    : Generator(interpreter, std::move(items));
}

Value FilterItems(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters none(interpreter, arguments, "items", {});
  if (value.IsUndefined()) return Generator(interpreter, {});
  if (!value.IsDict()) interpreter.Fail("Can only get item pairs from a mapping.");
  Items items;
  for (const auto& [key, item] : value.dict().items) {
    items.push_back(interpreter.Items(Kind::kTuple, {key, item}));
  }
  return Generator(interpreter, std::move(items));
}

Value FilterMap(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  if (!IsTrue(value)) return Generator(interpreter, {});
  Items results;
  const bool by_attribute =
      arguments.positional.empty() && arguments.Find(0, "attribute") != nullptr;
  if (by_attribute) {
    const Parameters parameters(interpreter, arguments, "map", {"attribute", "default"});
    const AttributePath path(interpreter, parameters.Required(0));
    const Value* otherwise = parameters.Find(1);
    if (otherwise != nullptr && otherwise->Is(Kind::kNone)) otherwise = nullptr;
    const std::shared_ptr<const Sequence> walked = interpreter.Walk(value);
    for (const Value& item : walked->items) {
      interpreter.Step();
      results.push_back(path.Of(item, otherwise));
    }
    return Generator(interpreter, std::move(results));
  }
  if (arguments.positional.empty()) interpreter.Fail("map requires a filter argument");
  const Value& name = arguments.positional.front();
  const FilterFunction filter = name.IsString() ? FindFilter(name.string().view()) : nullptr;
  if (filter == nullptr) {
    interpreter.Fail(fmt::format("there is no filter named {}",
                                 TextOf(interpreter, name).string().view().substr(0, 40)));
  }
  const Arguments rest = Behind(arguments, 1);
  const std::shared_ptr<const Sequence> walked = interpreter.Walk(value);
  for (const Value& item : walked->items) {
    interpreter.Step();
    results.push_back(filter(interpreter, item, rest));
  }
  return Generator(interpreter, std::move(results));
}

Value FilterSelect(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  return Choose(interpreter, value, arguments, false, true);
}

Value FilterReject(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  return Choose(interpreter, value, arguments, false, false);
}

Value FilterSelectAttr(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  return Choose(interpreter, value, arguments, true, true);
}

Value FilterRejectAttr(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  return Choose(interpreter, value, arguments, true, false);
}

Value FilterSort(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters parameters(interpreter, arguments, "sort",
                              {"reverse", "case_sensitive", "attribute"});
  const bool case_sensitive = parameters.Truth(1, false);
  // "a,b" sorts by a, then by b.
  std::vector<AttributePath> paths;
  const Value attribute = parameters.Or(2, Value::None());
  if (attribute.IsString()) {
    Arguments comma;
    comma.positional = {interpreter.Text(",")};
    const Value names = CallStringMethod(interpreter, attribute, "split", comma);
    for (const Value& name : names.sequence().items) paths.emplace_back(interpreter, name);
  } else {
    paths.emplace_back(interpreter, attribute);
  }
  std::vector<Keyed> keyed;
  const std::shared_ptr<const Sequence> walked = interpreter.Walk(value);
  for (const Value& item : walked->items) {
    Items keys;
    for (const AttributePath& path : paths) {
      keys.push_back(IgnoreCase(interpreter, path.Of(item), case_sensitive));
    }
    keyed.push_back({interpreter.List(std::move(keys)), item});
  }
  SortByKey(interpreter, &keyed, parameters.Truth(0, false));
  return interpreter.List(ItemsOf(std::move(keyed)));
}

Value FilterDictSort(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters parameters(interpreter, arguments, "dictsort",
                              {"case_sensitive", "by", "reverse"});
  if (value.IsUndefined()) interpreter.FailUndefined(value);
  if (!value.IsDict()) {
    interpreter.Fail(fmt::format("dictsort is given a {}, expected a dict", TypeName(value)));
  }
  const bool case_sensitive = parameters.Truth(0, false);
  const std::string by(parameters.Find(1) == nullptr ? "key" : parameters.Text(1).view());
  if (by != "key" && by != "value") {
    interpreter.Fail("You can only sort by either \"key\" or \"value\"");
  }
  std::vector<Keyed> keyed;
  for (const auto& [key, item] : value.dict().items) {
    keyed.push_back({IgnoreCase(interpreter, by == "key" ? key : item, case_sensitive),
                     interpreter.Items(Kind::kTuple, {key, item})});
  }
  SortByKey(interpreter, &keyed, parameters.Truth(2, false));
  return interpreter.List(ItemsOf(std::move(keyed)));
}

Value FilterUnique(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters parameters(interpreter, arguments, "unique", {"case_sensitive", "attribute"});
  const AttributePath path(interpreter, parameters.Or(1, Value::None()));
  const bool case_sensitive = parameters.Truth(0, false);
  std::set<std::string> seen;
  Items items;
  const std::shared_ptr<const Sequence> walked = interpreter.Walk(value);
  for (const Value& item : walked->items) {
    const Value key = IgnoreCase(interpreter, path.Of(item), case_sensitive);
    if (!IsHashable(key)) interpreter.Fail(fmt::format("unhashable type: '{}'", TypeName(key)));
    std::string text = KeyText(key);
    interpreter.StepBytes(64 + text.size());
    const MemoryCharge room = interpreter.Charge(text.size());
    if (seen.insert(std::move(text)).second) items.push_back(item);
  }
  return Generator(interpreter, std::move(items));
}

Value FilterGroupBy(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters parameters(interpreter, arguments, "groupby",
                              {"attribute", "default", "case_sensitive"});
  const AttributePath path(interpreter, parameters.Required(0));
  const Value* otherwise = parameters.Find(1);
  if (otherwise != nullptr && otherwise->Is(Kind::kNone)) otherwise = nullptr;
  const bool case_sensitive = parameters.Truth(2, false);
  std::vector<Keyed> keyed;
  const std::shared_ptr<const Sequence> walked = interpreter.Walk(value);
  for (const Value& item : walked->items) {
    keyed.push_back({IgnoreCase(interpreter, path.Of(item, otherwise), case_sensitive), item});
  }
  SortByKey(interpreter, &keyed, false);
  Items groups;
  for (size_t begin = 0; begin < keyed.size();) {
    Items group;
    size_t end = begin;
    while (end < keyed.size() && Equal(interpreter, keyed[end].key, keyed[begin].key)) {
      group.push_back(keyed[end++].item);
    }
    if (end == begin) group.push_back(keyed[end++].item);  // A key that does not equal itself.
    const Value grouper = path.Of(group.front(), otherwise);
    groups.push_back(
        interpreter.Items(Kind::kTuple, {grouper, interpreter.List(std::move(group))}, "group"));
    begin = end;
  }
  return interpreter.List(std::move(groups));
}

Value FilterSum(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters parameters(interpreter, arguments, "sum", {"attribute", "start"});
  const AttributePath path(interpreter, parameters.Or(0, Value::None()));
  Value sum = parameters.Or(1, Value::Int(0));
  if (sum.IsString()) interpreter.Fail("sum() can't sum strings");
  const std::shared_ptr<const Sequence> walked = interpreter.Walk(value);
  for (const Value& item : walked->items) {
    sum = Arithmetic(interpreter, '+', sum, path.Of(item));
  }
  return sum;
}

Value FilterMin(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  return Extreme(interpreter, value, arguments, false);
}

Value FilterMax(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  return Extreme(interpreter, value, arguments, true);
}

Value FilterBatch(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters parameters(interpreter, arguments, "batch", {"linecount", "fill_with"});
  const int64_t size = parameters.Integer(0);
  const Value fill = parameters.Or(1, Value::None());
  Items batches;
  Items batch;
  const std::shared_ptr<const Sequence> walked = interpreter.Walk(value);
  for (const Value& item : walked->items) {
    if (static_cast<int64_t>(batch.size()) == size) {
      batches.push_back(interpreter.List(std::exchange(batch, {})));
    }
    batch.push_back(item);
  }
  if (!batch.empty()) {
    if (!fill.Is(Kind::kNone)) {
      const auto count = static_cast<int64_t>(batch.size());
      const Value missing =
          Arithmetic(interpreter, '*', interpreter.List({fill}), Value::Int(size - count));
      const Items& items = missing.sequence().items;
      batch.insert(batch.end(), items.begin(), items.end());
    }
    batches.push_back(interpreter.List(std::move(batch)));
  }
  return Generator(interpreter, std::move(batches));
}

Value FilterSlice(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters parameters(interpreter, arguments, "slice", {"slices", "fill_with"});
  const int64_t count = parameters.Integer(0);
  if (count == 0) interpreter.Fail("integer division or modulo by zero");
  const Value fill = parameters.Or(1, Value::None());
  const std::shared_ptr<const Sequence> all = interpreter.Walk(value);
  const auto length = static_cast<int64_t>(all->items.size());
  Items slices;
  int64_t begin = 0;
  for (int64_t i = 0; i < count; ++i) {
    interpreter.Step();
    const bool is_longer = i < length % count;
    const int64_t end = begin + length / count + (is_longer ? 1 : 0);
    Items slice(all->items.begin() + begin, all->items.begin() + end);
    if (!fill.Is(Kind::kNone) && !is_longer) slice.push_back(fill);
    slices.push_back(interpreter.List(std::move(slice)));
    begin = end;
  }
  return Generator(interpreter, std::move(slices));
}

}  // namespace pmkvq::jinja
