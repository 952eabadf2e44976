#include "pmkvq/server/api/body_fields.h"

#include <fmt/format.h>

#include "pmkvq/base/error.h"
#include "pmkvq/server/api/api_error.h"

namespace pmkvq::server {
namespace {

constexpr size_t kMostDepth = 64;

bool AsksForNothing(const JsonValue& value) {
  switch (value.kind()) {
    case JsonValue::Kind::kNull:
      return true;
    case JsonValue::Kind::kBool:
      return !value.AsBool();
    case JsonValue::Kind::kInteger:
    case JsonValue::Kind::kNumber:
      return value.AsDouble() == 0;
    case JsonValue::Kind::kString:
      return value.AsStringView().empty();
    case JsonValue::Kind::kArray:
    case JsonValue::Kind::kObject:
      break;
  }
  return value.size() == 0;
}

}  // namespace

void CopyJson(JsonWriter& json, const JsonValue& value) {
  switch (value.kind()) {
    case JsonValue::Kind::kNull:
      json.Null();
      return;
    case JsonValue::Kind::kBool:
      json.Bool(value.AsBool());
      return;
    case JsonValue::Kind::kInteger:
      json.Int(value.AsInt());
      return;
    case JsonValue::Kind::kNumber:
      json.Number(value.AsDouble());
      return;
    case JsonValue::Kind::kString:
      json.String(value.AsStringView());
      return;
    case JsonValue::Kind::kArray:
      json.BeginArray();
      for (size_t i = 0; i < value.size(); ++i) CopyJson(json, value.At(i));
      json.EndArray();
      return;
    case JsonValue::Kind::kObject:
      json.BeginObject();
      value.ForEachMember([&](std::string_view name, const JsonValue& member) {
        json.Key(name);
        CopyJson(json, member);
      });
      json.EndObject();
      return;
  }
}

JsonValue BodyFields::Parse(std::string_view text) {
  try {
    return JsonValue::Parse(text, "body", {.max_depth = kMostDepth});
  } catch (const InvalidInput& error) {
    const std::string message = WithoutBrackets(error.what());
    const bool is_utf8 = message.find("UTF-8") != std::string::npos;
    throw RefusedRequest(InvalidRequest(is_utf8 ? "invalid_utf8" : "invalid_json", "", message));
  }
}

BodyFields::BodyFields(const JsonValue& body, std::string prefix)
    : body_(body), prefix_(std::move(prefix)) {
  if (body.IsObject()) return;
  const std::string name = prefix_.empty() ? "body" : prefix_.substr(0, prefix_.size() - 1);
  throw RefusedRequest(InvalidRequest(
      "invalid_value", prefix_.empty() ? "" : name,
      fmt::format("{}: found {}, expected an object", name, body.Dump().substr(0, 40))));
}

template <class Read>
auto BodyFields::ReadField(const std::string& name, const Read& read) {
  try {
    return read(Value(name));
  } catch (const InvalidInput& error) {
    std::string message = WithoutBrackets(error.what());
    constexpr std::string_view kBody = "body: ";
    if (message.starts_with(kBody)) message.erase(0, kBody.size());
    throw RefusedRequest(InvalidRequest("invalid_value", prefix_ + name, message));
  }
}

bool BodyFields::Has(const std::string& name) {
  known_.insert(name);
  return body_.Has(name);
}

JsonValue BodyFields::Value(const std::string& name) {
  known_.insert(name);
  return body_.At(name);
}

void BodyFields::Fail(const std::string& name, const std::string& found,
                      const std::string& expected) const {
  throw RefusedRequest(
      InvalidRequest("invalid_value", prefix_ + name,
                     fmt::format("{}{}: found {}, expected {}", prefix_, name, found, expected)));
}

std::optional<double> BodyFields::Number(const std::string& name, double least, double most) {
  if (!Has(name)) return std::nullopt;
  const double value = ReadField(name, [](const JsonValue& v) { return v.AsDouble(); });
  if (!(value >= least && value <= most)) {
    Fail(name, fmt::format("{}", value), fmt::format("a number from {} to {}", least, most));
  }
  return value;
}

std::optional<int64_t> BodyFields::Integer(const std::string& name, int64_t least, int64_t most) {
  if (!Has(name)) return std::nullopt;
  return ReadField(name, [&](const JsonValue& v) { return v.AsInt(least, most); });
}

std::optional<bool> BodyFields::Bool(const std::string& name) {
  if (!Has(name)) return std::nullopt;
  return ReadField(name, [](const JsonValue& v) { return v.AsBool(); });
}

std::optional<std::string> BodyFields::Text(const std::string& name, size_t most_bytes) {
  if (!Has(name)) return std::nullopt;
  std::string text = ReadField(name, [](const JsonValue& v) { return v.AsString(); });
  if (text.size() > most_bytes) {
    Fail(name, fmt::format("{} bytes", text.size()), fmt::format("at most {}", most_bytes));
  }
  return text;
}

std::vector<std::string> BodyFields::Texts(const std::string& name, size_t most_texts,
                                           size_t most_bytes) {
  std::vector<std::string> texts;
  if (!Has(name)) return texts;
  if (Value(name).IsString()) {
    texts.push_back(*Text(name, most_bytes));
    return texts;
  }
  const size_t count = ReadField(name, [&](const JsonValue& v) {
    if (!v.IsArray()) v.Fail("a string or a list of strings");
    return v.size();
  });
  if (count > most_texts) {
    Fail(name, fmt::format("{} strings", count), fmt::format("at most {}", most_texts));
  }
  for (size_t i = 0; i < count; ++i) {
    texts.push_back(ReadField(name, [&](const JsonValue& v) { return v.At(i).AsString(); }));
    if (texts.back().size() <= most_bytes) continue;
    Fail(name, fmt::format("{} bytes in string {}", texts.back().size(), i),
         fmt::format("at most {}", most_bytes));
  }
  return texts;
}

void BodyFields::Accept(std::initializer_list<const char*> names) {
  for (const char* name : names) known_.insert(name);
}

void BodyFields::Refuse(std::initializer_list<const char*> names) {
  for (const char* name : names) {
    if (!Has(name)) continue;
    const JsonValue value = Value(name);
    if (AsksForNothing(value)) continue;
    throw RefusedRequest(InvalidRequest(
        "unsupported_parameter", prefix_ + name,
        fmt::format("{}{}: found {}, which this server does not support; leave it out", prefix_,
                    name, value.Dump().substr(0, 80))));
  }
}

std::vector<std::string> BodyFields::unknown() const {
  std::vector<std::string> names;
  body_.ForEachMember([&](std::string_view name, const JsonValue&) {
    if (!known_.contains(std::string(name))) names.push_back(prefix_ + std::string(name));
  });
  return names;
}

}  // namespace pmkvq::server
