#include "pmkvq/text/jinja/value.h"

#include <fmt/format.h>

#include <cmath>

#include "pmkvq/text/jinja/objects.h"

namespace pmkvq::jinja {
namespace {

constexpr size_t kIndexFrom = 16;  // Smaller dicts are searched from the front.

bool SameStringKey(const Value& key, std::string_view text) {
  return key.IsString() && key.string().view() == text;
}

}  // namespace

bool IsHashable(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
    case Kind::kNone:
    case Kind::kBool:
    case Kind::kInt:
    case Kind::kFloat:
    case Kind::kString:
      return true;
    case Kind::kTuple:
      for (const Value& item : value.sequence().items) {
        if (!IsHashable(item)) return false;
      }
      return true;
    default:
      return false;
  }
}

std::string KeyText(const Value& key) {
  switch (key.kind()) {
    case Kind::kBool:
    case Kind::kInt:
      return fmt::format("i{}", key.as_int());
    case Kind::kFloat: {
      const double number = key.as_double();
      if (number == std::floor(number) && std::abs(number) < 9e18) {
        return fmt::format("i{}", static_cast<int64_t>(number));
      }
      return fmt::format("f{}", number);
    }
    case Kind::kString:
      return "s" + key.string().text.text;
    case Kind::kTuple: {
      std::string text = "t";
      for (const Value& item : key.sequence().items) {
        const std::string part = KeyText(item);
        text += fmt::format("{}:{}", part.size(), part);
      }
      return text;
    }
    case Kind::kNone:
      return "n";
    default:
      return "u";
  }
}

const Value* Dict::FindText(const std::string& text) const {
  const auto found = index_.find(text);
  return found == index_.end() ? nullptr : &items[found->second].second;
}

const Value* Dict::Find(std::string_view key) const {
  if (!index_.empty()) return FindText("s" + std::string(key));
  for (const auto& [name, value] : items) {
    if (SameStringKey(name, key)) return &value;
  }
  return nullptr;
}

const Value* Dict::Find(const Value& key) const {
  if (key.IsString()) return Find(key.string().view());
  const std::string text = KeyText(key);
  if (!index_.empty()) return FindText(text);
  for (const auto& [name, value] : items) {
    if (!name.IsString() && KeyText(name) == text) return &value;
  }
  return nullptr;
}

void Dict::Set(const Value& key, const Value& value) {
  depth = std::max(depth, DepthOf(value) + 1);
  if (const Value* present = Find(key)) {
    *const_cast<Value*>(present) = value;
    return;
  }
  items.emplace_back(key, value);
  if (items.size() > kIndexFrom && index_.empty()) {
    for (size_t i = 0; i < items.size(); ++i) index_.emplace(KeyText(items[i].first), i);
  } else if (!index_.empty()) {
    index_.emplace(KeyText(key), items.size() - 1);
  }
}

Value* Namespace::Find(std::string_view name) {
  for (auto& [member, value] : members) {
    if (member == name) return &value;
  }
  return nullptr;
}

int DepthOf(const Value& value) {
  if (value.HasItems()) return value.sequence().depth;
  switch (value.kind()) {
    case Kind::kDict:
      return value.dict().depth;
    case Kind::kLoop:
      return value.loop().depth;
    case Kind::kMethod:
      return DepthOf(value.method().object) + 1;
    default:
      // Namespaces, and the scopes of macros, belong to the interpreter.
      return 0;
  }
}

std::string_view TypeName(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return "Undefined";
    case Kind::kNone:
      return "NoneType";
    case Kind::kBool:
      return "bool";
    case Kind::kInt:
      return "int";
    case Kind::kFloat:
      return "float";
    case Kind::kString:
      return value.string().is_markup ? "Markup" : "str";
    case Kind::kList:
      return "list";
    case Kind::kTuple:
      return "tuple";
    case Kind::kRange:
      return "range";
    case Kind::kView:
      return value.sequence().label;
    case Kind::kGenerator:
      return "generator";
    case Kind::kDict:
      return "dict";
    case Kind::kNamespace:
      return "Namespace";
    case Kind::kLoop:
      return "LoopContext";
    case Kind::kMacro:
      return "Macro";
    case Kind::kFunction:
      return "function";
    case Kind::kMethod:
      return "builtin_function_or_method";
  }
  return "object";
}

bool IsTrue(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
    case Kind::kNone:
      return false;
    case Kind::kBool:
    case Kind::kInt:
      return value.as_int() != 0;
    case Kind::kFloat:
      return value.as_double() != 0;
    case Kind::kString:
      return !value.string().view().empty();
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kRange:
    case Kind::kView:
      return !value.sequence().items.empty();
    case Kind::kDict:
      return !value.dict().items.empty();
    default:
      return true;
  }
}

}  // namespace pmkvq::jinja
