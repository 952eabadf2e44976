#include "pmkvq/text/jinja/template.h"

#include <fmt/format.h>

#include "pmkvq/base/error.h"
#include "pmkvq/io/utf8.h"
#include "pmkvq/text/jinja/interpreter.h"
#include "pmkvq/text/jinja/parser.h"
#include "pmkvq/text/tokenizer.h"

namespace pmkvq::jinja {
namespace {

Value ConvertJson(const JsonValue& json, int depth) {
  if (depth > Limits().max_value_depth) json.Fail("a value that is nested less deep");
  switch (json.kind()) {
    case JsonValue::Kind::kNull:
      return Value::None();
    case JsonValue::Kind::kBool:
      return Value::Bool(json.AsBool());
    case JsonValue::Kind::kInteger:
      return Value::Int(json.AsInt());
    case JsonValue::Kind::kNumber:
      return Value::Float(json.AsDouble());
    case JsonValue::Kind::kString:
      return InputString(json.AsString());
    case JsonValue::Kind::kArray: {
      std::vector<Value> items;
      for (size_t i = 0; i < json.size(); ++i) items.push_back(ConvertJson(json.At(i), depth + 1));
      return MakeList(std::move(items));
    }
    case JsonValue::Kind::kObject: {
      auto dict = std::make_shared<Dict>();
      for (const std::string& key : json.Keys()) {
        dict->Set(InputString(key), ConvertJson(json.Find(key), depth + 1));
      }
      return {Kind::kDict, std::move(dict)};
    }
  }
  return Value();
}

}  // namespace

Value MarkedString(MarkedText text) {
  auto string = std::make_shared<String>();
  string->text = std::move(text);
  std::erase_if(string->text.input,
                [](const ByteRange& range) { return range.begin == range.end; });
  return {Kind::kString, std::move(string)};
}

Value InputString(std::string text) {
  const size_t size = text.size();
  return MarkedString({std::move(text), {{0, size}}});
}

Value TrustedString(std::string text) { return MarkedString({std::move(text), {}}); }

Value MakeList(std::vector<Value> items) {
  auto list = std::make_shared<Sequence>();
  for (const Value& item : items) list->depth = std::max(list->depth, DepthOf(item) + 1);
  list->items = std::move(items);
  return {Kind::kList, std::move(list)};
}

Value MakeDict(std::vector<std::pair<std::string, Value>> members) {
  auto dict = std::make_shared<Dict>();
  for (auto& [name, value] : members) dict->Set(InputString(std::move(name)), value);
  return {Kind::kDict, std::move(dict)};
}

Value FromJson(const JsonValue& json) { return ConvertJson(json, 1); }

Template::Template() = default;
Template::~Template() = default;

std::shared_ptr<const Template> Template::Parse(std::string_view text, const std::string& source,
                                                const Limits& limits) {
  CheckUtf8(text, source);
  const std::shared_ptr<Template> result(new Template());
  result->source_ = source;
  result->limits_ = limits;
  result->tree_ = std::make_unique<Tree>(ParseTree(text, source, limits));
  return result;
}

MarkedText Template::Render(const Variables& variables, const Date& date) const {
  Interpreter interpreter(*tree_, limits_, source_, date);
  for (const auto& [name, value] : variables) interpreter.SetVariable(name, value);
  return interpreter.Run();
}

}  // namespace pmkvq::jinja
