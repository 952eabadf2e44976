#include "pmkvq/server/api/output_format.h"

#include <fmt/format.h>

#include "pmkvq/base/error.h"
#include "pmkvq/server/api/api_error.h"

namespace pmkvq::server {

int32_t AddSchema(JsonGrammar& grammar, const JsonValue& schema, const std::string& field) {
  const auto refuse = [&](const char* code, const std::string& message) {
    std::string text = WithoutBrackets(message);
    constexpr std::string_view kBody = "body: ";
    if (text.starts_with(kBody)) text.erase(0, kBody.size());
    throw RefusedRequest(InvalidRequest(code, field, text));
  };
  try {
    return grammar.AddSchema(schema, field);
  } catch (const Unsupported& error) {
    refuse("unsupported_parameter", error.what());
  } catch (const InvalidInput& error) {
    refuse("invalid_value", error.what());
  }
  return 0;
}

std::shared_ptr<const TokenTexts> OutputFormats::Texts() const {
  const std::lock_guard lock(mutex_);
  if (texts_ == nullptr) texts_ = std::make_shared<const TokenTexts>(*tokenizer_, vocab_size_);
  return texts_;
}

std::shared_ptr<const OutputGrammar> OutputFormats::Make(std::shared_ptr<JsonGrammar> grammar,
                                                         int32_t start,
                                                         const AnswerPlace& place) const {
  TokenGrammar::Options options;
  options.end_ids = place.end_ids;
  if (place.starts_in_reasoning || place.may_reason) options.starts_behind = "</think>";
  if (!place.starts_in_reasoning && place.may_reason) {
    options.opening_id = tokenizer_->TokenId("<think>");
    if (options.opening_id < 0) options.starts_behind.clear();
  }
  const int32_t whole = grammar->BehindSpace(start);
  std::shared_ptr<const Grammar> rules(grammar, &grammar->grammar());
  return std::make_shared<TokenGrammar>(std::move(rules), whole, Texts(), std::move(options));
}

void RefuseEndFields(BodyFields& body, const char* beside) {
  for (const char* field : {"ignore_eos", "min_tokens"}) {
    if (!body.Has(field)) continue;
    const std::string value = body.Value(field).Dump();
    if (value == "false" || value == "0") continue;
    body.Fail(field, value, fmt::format("none beside {}, which says where the text ends", beside));
  }
}

std::shared_ptr<const OutputGrammar> OutputFormats::OfResponseFormat(
    BodyFields& body, const AnswerPlace& place) const {
  if (!body.Has("response_format")) return nullptr;
  BodyFields format(body.Value("response_format"), "response_format.");
  const std::string type = format.Text("type", 64).value_or("text");
  if (type == "text") return nullptr;
  auto grammar = std::make_shared<JsonGrammar>();
  int32_t start = grammar->any_object();
  if (type == "json_schema") {
    if (!format.Has("json_schema")) {
      format.Fail("json_schema", "none", "an object with name and schema");
    }
    BodyFields schema(format.Value("json_schema"), "response_format.json_schema.");
    schema.Accept({"name", "description", "strict"});
    if (!schema.Has("schema")) schema.Fail("schema", "none", "a JSON schema");
    start = AddSchema(*grammar, schema.Value("schema"), "response_format");
  } else if (type != "json_object") {
    format.Fail("type", "\"" + type + "\"", "text, json_object or json_schema");
  }
  RefuseEndFields(body, "response_format");
  return Make(std::move(grammar), start, place);
}

}  // namespace pmkvq::server
