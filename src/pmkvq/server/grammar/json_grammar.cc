#include "pmkvq/server/grammar/json_grammar.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "pmkvq/base/error.h"

namespace pmkvq::server {
namespace {

constexpr int kMostDepth = 64;
constexpr int64_t kMostSymbols = 1 << 18;
constexpr int64_t kMostRepeats = 4096;
constexpr int kMostIndent = 20;
constexpr int kMostDigits = 18;

constexpr const char* kAnnotations[] = {
    "title",    "description", "default",     "examples",   "$schema",  "$id",       "$anchor",
    "$comment", "$defs",       "definitions", "deprecated", "readOnly", "writeOnly",
};

Grammar::Symbol Of(std::string_view bytes) {
  Grammar::Symbol symbol;
  for (const char c : bytes) symbol.bytes.set(static_cast<unsigned char>(c));
  return symbol;
}

Grammar::Sequence Chars(std::string_view text) {
  Grammar::Sequence sequence;
  Grammar::AppendLiteral(text, sequence);
  return sequence;
}

Grammar::Sequence operator+(Grammar::Sequence a, const Grammar::Sequence& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

Grammar::Sequence Rules(std::initializer_list<int32_t> rules) {
  Grammar::Sequence sequence;
  for (const int32_t rule : rules) sequence.push_back(Grammar::Rule(rule));
  return sequence;
}

std::string Quoted(std::string_view text) {
  JsonWriter json;
  json.String(text);
  return json.text();
}

// A keyword that does not describe values, or one of `known`; refuses others.
void CheckKeywords(const JsonValue& schema, const std::set<std::string>& known) {
  for (const std::string& name : schema.Keys()) {
    if (known.contains(name)) continue;
    if (std::find(std::begin(kAnnotations), std::end(kAnnotations), name) !=
        std::end(kAnnotations)) {
      continue;
    }
    schema.Find(name).Refuse(
        fmt::format("no \"{}\" here, which this server does not enforce", name));
  }
}

}  // namespace

JsonGrammar::JsonGrammar() { AddBasicRules(); }

int32_t JsonGrammar::Alternatives(const std::vector<Sequence>& alternatives) {
  const int32_t rule = grammar_.AddRule();
  for (const Sequence& sequence : alternatives) grammar_.AddAlternative(rule, sequence);
  return rule;
}

int32_t JsonGrammar::Repeated(int32_t item, const Sequence& separator, int64_t first,
                              int64_t last) {
  // From the back: what may follow when so many are there.
  int32_t rest = Alternatives({{}});
  const Sequence more = separator + Rules({item});
  if (last < 0) {
    rest = grammar_.AddRule();
    grammar_.AddAlternative(rest, {});
    grammar_.AddAlternative(rest, more + Rules({rest}));
    last = std::max<int64_t>(first, 1);
  }
  for (int64_t count = last - 1; count >= 1; --count) {
    const Sequence next = more + Rules({rest});
    rest = count < first ? Alternatives({next}) : Alternatives({{}, next});
  }
  if (last == 0) return Alternatives({{}});
  const Sequence whole = Rules({item, rest});
  return first == 0 ? Alternatives({{}, whole}) : Alternatives({whole});
}

void JsonGrammar::AddStrings() {
  using G = Grammar;
  const int32_t hex = Alternatives({{Of("0123456789abcdefABCDEF")}});
  const G::Symbol tail = G::Range(0x80, 0xBF);
  G::Symbol plain = G::Range(0x20, 0x7F);
  plain.bytes.reset('"');
  plain.bytes.reset('\\');
  plain.bytes.reset(0x7F);
  const G::Symbol h = G::Rule(hex);
  // Escapes of surrogates come in pairs.
  const Sequence low = Chars("\\u") + Sequence{Of("dD"), Of("cdefCDEF"), h, h};
  character_ = Alternatives({
      {plain},
      {G::Range(0xC2, 0xDF), tail},
      {G::Range(0xE0, 0xE0), G::Range(0xA0, 0xBF), tail},
      {G::Range(0xE1, 0xEC), tail, tail},
      {G::Range(0xED, 0xED), G::Range(0x80, 0x9F), tail},
      {G::Range(0xEE, 0xEF), tail, tail},
      {G::Range(0xF0, 0xF0), G::Range(0x90, 0xBF), tail, tail},
      {G::Range(0xF1, 0xF3), tail, tail, tail},
      {G::Range(0xF4, 0xF4), G::Range(0x80, 0x8F), tail, tail},
      Chars("\\") + Sequence{Of("\"\\/bfnrt")},
      Chars("\\u") + Sequence{Of("0123456789abcefABCEF"), h, h, h},
      Chars("\\u") + Sequence{Of("dD"), Of("01234567"), h, h},
      Chars("\\u") + Sequence{Of("dD"), Of("89abAB"), h, h} + low,
  });
  string_ = Alternatives({Chars("\"") + Rules({Repeated(character_, {}, 0, -1)}) + Chars("\"")});
}

void JsonGrammar::AddNumbers() {
  const int32_t digit = Alternatives({{Grammar::Range('0', '9')}});
  const int32_t digits = Repeated(digit, {}, 1, kMostDigits);
  const int32_t more_digits = Repeated(digit, {}, 0, kMostDigits - 1);
  const int32_t minus = Alternatives({{}, Chars("-")});
  const int32_t whole =
      Alternatives({Chars("0"), {Grammar::Range('1', '9'), Grammar::Rule(more_digits)}});
  integer_ = Alternatives({Rules({minus, whole})});
  const int32_t fraction = Alternatives({{}, Chars(".") + Rules({digits})});
  const int32_t sign = Alternatives({{}, {Of("+-")}});
  // Two digits: no number beyond the doubles.
  const int32_t exponent =
      Alternatives({{}, Sequence{Of("eE")} + Rules({sign, Repeated(digit, {}, 1, 2)})});
  number_ = Alternatives({Rules({minus, whole, fraction, exponent})});
}

void JsonGrammar::AddBasicRules() {
  const int32_t one_space = Alternatives({Chars(" ")});
  const int32_t indent = Repeated(one_space, {}, 0, kMostIndent);
  space_ = Alternatives({{}, Chars(" "), Chars("\n") + Rules({indent})});
  AddStrings();
  AddNumbers();
  boolean_ = Alternatives({Chars("true"), Chars("false")});
  null_ = Alternatives({Chars("null")});
  value_ = grammar_.AddRule();
  const Sequence comma = Chars(",") + Rules({space_});
  const int32_t member = Alternatives({Rules({string_}) + Chars(":") + Rules({space_, value_})});
  const auto list = [&](const char* open, int32_t item, const char* close) {
    return Alternatives(
        {Chars(open) + Rules({space_, Repeated(item, comma, 0, -1), space_}) + Chars(close)});
  };
  object_ = list("{", member, "}");
  array_ = list("[", value_, "]");
  for (const int32_t rule : {object_, array_, string_, number_, boolean_, null_}) {
    grammar_.AddAlternative(value_, Rules({rule}));
  }
}

int32_t JsonGrammar::BehindSpace(int32_t rule) { return Alternatives({Rules({space_, rule})}); }

int32_t JsonGrammar::AddSchema(const JsonValue& schema, const std::string& where) {
  Scope scope{schema, where, {}, 0};
  const int32_t rule = Schema(schema, scope);
  if (!grammar_.DropEndless(rule)) {
    throw InvalidInput(where, "the schema describes no value that ends: it needs itself");
  }
  return rule;
}

void JsonGrammar::CheckSize(const Scope& scope) const {
  if (grammar_.num_symbols() > kMostSymbols) {
    throw Unsupported(scope.where,
                      "the schema is too large, expected fewer members, values and "
                      "repetitions");
  }
  if (scope.depth > kMostDepth) {
    throw Unsupported(scope.where, fmt::format("found schemas nested deeper than {}", kMostDepth));
  }
}

// Whether a literal has one of the types that stand beside it, where there are any.
bool JsonGrammar::HasTypeOf(const JsonValue& schema, const JsonValue& value) {
  if (!schema.Has("type")) return true;
  const auto is_of = [&](const std::string& type) {
    return (type == "object" && value.IsObject()) || (type == "array" && value.IsArray()) ||
           (type == "string" && value.IsString()) || (type == "integer" && value.IsInteger()) ||
           (type == "number" && value.IsNumber()) || (type == "boolean" && value.IsBool()) ||
           (type == "null" && value.IsNull());
  };
  const JsonValue types = schema.At("type");
  if (!types.IsArray()) return is_of(types.AsString());
  for (size_t i = 0; i < types.size(); ++i) {
    if (is_of(types.At(i).AsString())) return true;
  }
  return false;
}

int32_t JsonGrammar::Schema(const JsonValue& schema, Scope& scope) {
  if (schema.IsBool() && schema.AsBool()) return value_;
  if (!schema.IsObject()) schema.Fail("a schema: an object");
  ++scope.depth;
  CheckSize(scope);
  int32_t rule = 0;
  if (schema.Has("$ref")) {
    CheckKeywords(schema, {"$ref"});
    rule = Reference(schema.At("$ref"), scope);
  } else if (schema.Has("anyOf")) {
    CheckKeywords(schema, {"anyOf"});
    const JsonValue list = schema.At("anyOf");
    if (!list.IsArray() || list.size() == 0) list.Fail("a list of schemas");
    std::vector<Sequence> alternatives;
    for (size_t i = 0; i < list.size(); ++i) {
      alternatives.push_back(Rules({Schema(list.At(i), scope)}));
    }
    rule = Alternatives(alternatives);
  } else if (schema.Has("enum") || !schema.Find("const").IsMissing()) {
    CheckKeywords(schema, {schema.Has("enum") ? "enum" : "const", "type"});
    std::vector<Sequence> alternatives;
    const auto add = [&](const JsonValue& value) {
      if (HasTypeOf(schema, value)) alternatives.push_back(Rules({Literal(value)}));
    };
    if (schema.Has("enum")) {
      const JsonValue list = schema.At("enum");
      if (!list.IsArray() || list.size() == 0) list.Fail("a list of values");
      for (size_t i = 0; i < list.size(); ++i) add(list.At(i));
    } else {
      add(schema.Find("const"));
    }
    if (alternatives.empty()) schema.Fail("a value of the type that stands beside it");
    rule = Alternatives(alternatives);
  } else if (schema.Has("type")) {
    const JsonValue type = schema.At("type");
    std::vector<Sequence> alternatives;
    if (type.IsArray()) {
      if (type.size() == 0) type.Fail("a type, or a list of types");
      std::set<std::string> names;
      for (size_t i = 0; i < type.size(); ++i) {
        if (!names.insert(type.At(i).AsString()).second) type.At(i).Fail("each type once");
      }
      for (size_t i = 0; i < type.size(); ++i) {
        alternatives.push_back(Rules({SchemaOfType(schema, type.At(i).AsString(), scope)}));
      }
    } else {
      alternatives.push_back(Rules({SchemaOfType(schema, type.AsString(), scope)}));
    }
    if (schema.BoolOr("nullable", false)) alternatives.push_back(Rules({null_}));
    rule = Alternatives(alternatives);
  } else if (schema.Has("properties")) {
    rule = SchemaOfType(schema, "object", scope);
  } else {
    CheckKeywords(schema, {});
    rule = value_;
  }
  --scope.depth;
  return rule;
}

int32_t JsonGrammar::SchemaOfType(const JsonValue& schema, const std::string& type, Scope& scope) {
  // A list of types may have the keywords of each of them.
  CheckKeywords(schema, {"type", "nullable", "properties", "required", "additionalProperties",
                         "items", "prefixItems", "minItems", "maxItems", "minLength", "maxLength"});
  if (type == "object") return Object(schema, scope);
  if (type == "array") return Array(schema, scope);
  if (type == "string") return StringOf(schema);
  if (type == "integer") return integer_;
  if (type == "number") return number_;
  if (type == "boolean") return boolean_;
  if (type == "null") return null_;
  schema.At("type").Fail("object, array, string, integer, number, boolean or null");
}

int32_t JsonGrammar::Reference(const JsonValue& reference, Scope& scope) {
  const std::string path = reference.AsString();
  const auto found = scope.references.find(path);
  if (found != scope.references.end()) return found->second;
  JsonValue target = scope.root;
  const size_t slash = path.find('/', 2);
  const bool is_definition = slash != std::string::npos &&
                             (path.starts_with("#/$defs/") || path.starts_with("#/definitions/"));
  if (is_definition) {
    const std::string list = path.substr(2, slash - 2);
    const std::string name = path.substr(slash + 1);
    if (!scope.root.Has(list) || !scope.root.At(list).Has(name)) {
      reference.Fail("the name of one of the schema's $defs");
    }
    target = scope.root.At(list).At(name);
  } else if (path != "#") {
    reference.Refuse("\"#\", \"#/$defs/NAME\" or \"#/definitions/NAME\"");
  }
  // Known before it is made: it may contain itself.
  const int32_t rule = grammar_.AddRule();
  scope.references[path] = rule;
  grammar_.AddAlternative(rule, Rules({Schema(target, scope)}));
  return rule;
}

int32_t JsonGrammar::Object(const JsonValue& schema, Scope& scope) {
  std::vector<std::string> names;
  if (schema.Has("properties")) names = schema.At("properties").Keys();
  std::set<std::string> required;
  if (schema.Has("required")) {
    const JsonValue list = schema.At("required");
    if (!list.IsArray()) list.Fail("a list of names");
    for (size_t i = 0; i < list.size(); ++i) {
      const std::string name = list.At(i).AsString();
      if (std::find(names.begin(), names.end(), name) == names.end()) {
        list.At(i).Refuse("a name of properties");
      }
      required.insert(name);
    }
  }
  const JsonValue additional = schema.Find("additionalProperties");
  const bool is_closed = !additional.IsMissing() && additional.IsBool() && !additional.AsBool();
  const bool has_schema = !additional.IsMissing() && additional.IsObject();
  const Sequence comma = Chars(",") + Rules({space_});

  // From the back: what may follow where nothing, or something, is in front.
  int32_t when_first = Alternatives({{}});
  int32_t when_behind = when_first;
  // Beside properties there are no further members: one could have the name of a property.
  if (!is_closed && names.empty()) {
    const int32_t value = has_schema ? Schema(additional, scope) : value_;
    const int32_t member = Alternatives({Rules({string_}) + Chars(":") + Rules({space_, value})});
    when_first = Repeated(member, comma, 0, -1);
    const int32_t more = grammar_.AddRule();
    grammar_.AddAlternative(more, {});
    grammar_.AddAlternative(more, comma + Rules({member, more}));
    when_behind = more;
  }
  for (size_t i = names.size(); i-- > 0;) {
    const JsonValue property = schema.At("properties").Find(names[i]);
    const int32_t member =
        Alternatives({Chars(Quoted(names[i]) + ":") + Rules({space_, Schema(property, scope)})});
    CheckSize(scope);
    const int32_t as_first = Alternatives({Rules({member, when_behind})});
    const int32_t behind = Alternatives({comma + Rules({member, when_behind})});
    if (required.contains(names[i])) {
      when_first = as_first;
      when_behind = behind;
    } else {
      when_first = Alternatives({Rules({as_first}), Rules({when_first})});
      when_behind = Alternatives({Rules({behind}), Rules({when_behind})});
    }
  }
  return Alternatives({Chars("{") + Rules({space_, when_first, space_}) + Chars("}")});
}

int32_t JsonGrammar::Array(const JsonValue& schema, Scope& scope) {
  const auto bound = [&](const char* name, int64_t otherwise) {
    return schema.Has(name) ? schema.At(name).AsInt(0, kMostRepeats) : otherwise;
  };
  const int64_t least = bound("minItems", 0);
  const int64_t most = bound("maxItems", -1);
  if (most >= 0 && most < least) schema.At("maxItems").Fail("a number of at least minItems");
  const Sequence comma = Chars(",") + Rules({space_});
  const JsonValue items = schema.Find("items");
  int32_t list = 0;
  if (schema.Has("prefixItems")) {
    const JsonValue prefix = schema.At("prefixItems");
    const bool is_closed = !items.IsMissing() && items.IsBool() && !items.AsBool();
    const auto count = static_cast<int64_t>(prefix.size());
    if (!prefix.IsArray() || count == 0) prefix.Fail("a list of schemas");
    if (!is_closed || least != count || (most >= 0 && most != count)) {
      prefix.Refuse("\"items\": false and a minItems of as many as there are");
    }
    Sequence sequence;
    for (size_t i = 0; i < prefix.size(); ++i) {
      if (i > 0) sequence = sequence + comma;
      sequence = sequence + Rules({Schema(prefix.At(i), scope)});
    }
    list = Alternatives({sequence});
  } else {
    const int32_t item = items.IsMissing() ? value_ : Schema(items, scope);
    list = Repeated(item, comma, least, most);
  }
  CheckSize(scope);
  return Alternatives({Chars("[") + Rules({space_, list, space_}) + Chars("]")});
}

int32_t JsonGrammar::StringOf(const JsonValue& schema) {
  if (!schema.Has("minLength") && !schema.Has("maxLength")) return string_;
  const auto bound = [&](const char* name, int64_t otherwise) {
    return schema.Has(name) ? schema.At(name).AsInt(0, kMostRepeats) : otherwise;
  };
  const int64_t least = bound("minLength", 0);
  const int64_t most = bound("maxLength", -1);
  if (most >= 0 && most < least) schema.At("maxLength").Fail("a number of at least minLength");
  return Alternatives({Chars("\"") + Rules({Repeated(character_, {}, least, most)}) + Chars("\"")});
}

int32_t JsonGrammar::Literal(const JsonValue& value) {
  // Strings with the escapes that JSON asks for and no others, as models write them.
  return Alternatives({Chars(value.IsString() ? Quoted(value.AsString()) : value.Dump())});
}

}  // namespace pmkvq::server
