// Grammars of JSON texts: any object, and those that a JSON schema describes.
//
// The known part of JSON Schema (docs/serving.md has the list for users): type (one or a list),
// properties, required, additionalProperties, items, prefixItems, minItems, maxItems, enum, const,
// anyOf, minLength, maxLength, $ref to "#", "#/$defs/..." and "#/definitions/...", nullable, and
// annotations (title, description, default, examples, $schema, $id, $comment, deprecated, readOnly,
// writeOnly). Any other keyword is refused by name. Members of an object come in the order of
// `properties`, further ones behind them. Between tokens of JSON are at most one space, or a line
// break and at most 20 spaces.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "pmkvq/io/json.h"
#include "pmkvq/server/grammar/grammar.h"

namespace pmkvq::server {

class JsonGrammar {
 public:
  JsonGrammar();

  // The rule of any JSON value, or of any object.
  int32_t any_value() const { return value_; }
  int32_t any_object() const { return object_; }
  // The rule of a schema's values. `where` names the schema in errors: "response_format".
  // Throws InvalidInput (a malformed schema), Unsupported (a keyword outside of the subset, a
  // schema that is too large).
  int32_t AddSchema(const JsonValue& schema, const std::string& where);
  // White space, the whole text `rule`.
  int32_t BehindSpace(int32_t rule);

  Grammar& grammar() { return grammar_; }
  const Grammar& grammar() const { return grammar_; }

 private:
  using Sequence = Grammar::Sequence;
  struct Scope {  // Of one AddSchema.
    JsonValue root;
    std::string where;
    std::map<std::string, int32_t> references;
    int depth = 0;
  };

  int32_t Alternatives(const std::vector<Sequence>& alternatives);
  // `first` to `last` (-1: any number) times `item`, `separator` between them.
  int32_t Repeated(int32_t item, const Sequence& separator, int64_t first, int64_t last);
  int32_t Schema(const JsonValue& schema, Scope& scope);
  int32_t SchemaOfType(const JsonValue& schema, const std::string& type, Scope& scope);
  int32_t Reference(const JsonValue& reference, Scope& scope);
  int32_t Object(const JsonValue& schema, Scope& scope);
  int32_t Array(const JsonValue& schema, Scope& scope);
  int32_t StringOf(const JsonValue& schema);
  int32_t Literal(const JsonValue& value);
  static bool HasTypeOf(const JsonValue& schema, const JsonValue& value);
  void CheckSize(const Scope& scope) const;
  void AddBasicRules();
  void AddStrings();
  void AddNumbers();

  Grammar grammar_;
  int32_t space_ = 0;
  int32_t character_ = 0;  // Of a string, between the quotes.
  int32_t string_ = 0;
  int32_t integer_ = 0;
  int32_t number_ = 0;
  int32_t value_ = 0;
  int32_t object_ = 0;
  int32_t array_ = 0;
  int32_t boolean_ = 0;
  int32_t null_ = 0;
};

}  // namespace pmkvq::server
