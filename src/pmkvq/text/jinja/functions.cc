// The global functions.
#include <fmt/format.h>

#include <algorithm>

#include "pmkvq/text/jinja/format.h"
#include "pmkvq/text/jinja/library.h"
#include "pmkvq/text/jinja/parameters.h"
#include "pmkvq/text/jinja/text_of.h"

namespace pmkvq::jinja {
namespace {

Value CallRange(Interpreter& interpreter, const Arguments& arguments) {
  if (arguments.positional.empty() || !arguments.named.empty()) {
    interpreter.Fail("range() wants one to three integers");
  }
  const Parameters parameters(interpreter, arguments, "range", {"start", "stop", "step"});
  const bool has_start = arguments.positional.size() > 1;
  const int64_t start = has_start ? parameters.Integer(0) : 0;
  const int64_t stop = parameters.Integer(has_start ? 1 : 0);
  const int64_t step = parameters.Integer(2, 1);
  if (step == 0) interpreter.Fail("range() arg 3 must not be zero");
  // As long double: the difference of two integers may not fit one.
  const auto distance = static_cast<long double>(stop) - static_cast<long double>(start);
  if (distance / static_cast<long double>(step) >
      static_cast<long double>(interpreter.limits().max_range)) {
    interpreter.Fail(
        fmt::format("a range has more than {} numbers", interpreter.limits().max_range));
  }
  std::vector<Value> numbers;
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    interpreter.Step();
    numbers.push_back(Value::Int(i));
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  std::string label = step == 1 ? fmt::format("range({}, {})", start, stop)
                                : fmt::format("range({}, {}, {})", start, stop, step);
  return interpreter.Items(Kind::kRange, std::move(numbers), std::move(label));
}

// The pairs that dict() and namespace() are given: of a dict or of pairs, and the names.
Dict PairsOf(Interpreter& interpreter, const Arguments& arguments, std::string_view function) {
  if (arguments.positional.size() > 1) {
    interpreter.Fail(fmt::format("{}() takes at most one dict", function));
  }
  Dict pairs;
  const auto set = [&](const Value& key, const Value& value) {
    if (!IsHashable(key)) interpreter.Fail(fmt::format("unhashable type: '{}'", TypeName(key)));
    interpreter.Step();
    pairs.Set(key, value);
  };
  if (!arguments.positional.empty()) {
    const Value& source = arguments.positional.front();
    if (source.IsDict()) {
      for (const auto& [key, value] : source.dict().items) set(key, value);
    } else {
      const std::shared_ptr<const Sequence> walked = interpreter.Walk(source);
      for (const Value& pair : walked->items) {
        const std::shared_ptr<const Sequence> parts = interpreter.Walk(pair);
        if (parts->items.size() != 2) {
          interpreter.Fail(fmt::format("{}() wants a dict or pairs", function));
        }
        set(parts->items[0], parts->items[1]);
      }
    }
  }
  for (const auto& [name, value] : arguments.named) set(interpreter.Text(name), value);
  return pairs;
}

Value CallDict(Interpreter& interpreter, const Arguments& arguments) {
  return interpreter.FromDict(PairsOf(interpreter, arguments, "dict"));
}

Value CallNamespace(Interpreter& interpreter, const Arguments& arguments) {
  std::vector<std::pair<std::string, Value>> members;
  for (const auto& [key, value] : PairsOf(interpreter, arguments, "namespace").items) {
    if (key.IsString()) members.emplace_back(key.string().view(), value);
  }
  return interpreter.NewNamespace(std::move(members));
}

Value CallRaiseException(Interpreter& interpreter, const Arguments& arguments) {
  const Parameters parameters(interpreter, arguments, "raise_exception", {"message"});
  const Value message = TextOf(interpreter, parameters.Required(0));
  interpreter.Fail(fmt::format("the template refuses the messages: {}", message.string().view()));
}

Value CallStrftimeNow(Interpreter& interpreter, const Arguments& arguments) {
  const Parameters parameters(interpreter, arguments, "strftime_now", {"format"});
  return interpreter.Text(FormatDate(interpreter, interpreter.date(), parameters.Text(0).view()));
}

}  // namespace

const Function* FindFunction(std::string_view name) {
  static constexpr Function kFunctions[] = {
      {"dict", CallDict},
      {"namespace", CallNamespace},
      {"raise_exception", CallRaiseException},
      {"range", CallRange},
      {"strftime_now", CallStrftimeNow},
  };
  const auto* found = std::find_if(std::begin(kFunctions), std::end(kFunctions),
                                   [&](const Function& entry) { return entry.name == name; });
  return found == std::end(kFunctions) ? nullptr : found;
}

}  // namespace pmkvq::jinja
