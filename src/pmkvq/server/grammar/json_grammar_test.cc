#include "pmkvq/server/grammar/json_grammar.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "pmkvq/base/error.h"
#include "support/cpu_time.h"

namespace pmkvq::server {
namespace {

// How a text ends: "whole", "open" (more must follow), or "refused".
std::string Reading(const Grammar& grammar, int32_t start, std::string_view text) {
  GrammarStates states(&grammar, start);
  int32_t state = states.start();
  for (const char c : text) {
    state = states.Next(state, static_cast<unsigned char>(c));
    if (state == GrammarStates::kNone) return "refused";
  }
  return states.Ends(state) ? "whole" : "open";
}

class Schema {
 public:
  explicit Schema(const std::string& text)
      : start_(grammar_.AddSchema(JsonValue::Parse(text, "schema"), "schema")) {}
  std::string operator()(std::string_view text) const {
    return Reading(grammar_.grammar(), start_, text);
  }

 private:
  JsonGrammar grammar_;
  int32_t start_;
};

TEST(JsonGrammar, AnyValue) {
  JsonGrammar json;
  const auto read = [&](std::string_view text) {
    return Reading(json.grammar(), json.any_value(), text);
  };
  for (const char* text :
       {"{}", "[]", "\"\"", "0", "-1.5e-10", "true", "null",
        "{\"a\": [1, {\"b\": \"c\"}], \"d\": 2}", "[\n  1,\n  2\n]", "\"\\u00e9\\ud83d\\ude00\\n\"",
        "\"\xc3\xa9\xf0\x9f\x98\x80\"", "[[[[]]]]"}) {
    EXPECT_EQ(read(text), "whole") << text;
    EXPECT_NO_THROW(JsonValue::Parse(text, "x")) << text;
  }
  for (const char* text :
       {"01", "+1", ".5", "{a", "{\"a\" ", "[1,]", "\"\n", "\"\x80", "\"\xc0\xaf", "\"\\x",
        "\"\\ud83dx", "\"\\ude00", "nul1", "[1 2", "\"\xed\xa0\x80"}) {
    EXPECT_EQ(read(text), "refused") << text;
  }
  for (const char* text : {"{", "[1", "\"a", "-", "tru", "\"\xc3", "1e", "{\"a\":"}) {
    EXPECT_EQ(read(text), "open") << text;
  }
  EXPECT_EQ(Reading(json.grammar(), json.any_object(), "[1]"), "refused");
}

// Random walks along the grammar end in texts that a parser takes.
TEST(JsonGrammar, WhatItAllowsIsJson) {
  JsonGrammar json;
  std::mt19937 random(1);
  int64_t num_whole = 0;
  for (int i = 0; i < 300; ++i) {
    GrammarStates states(&json.grammar(), json.any_value());
    int32_t state = states.start();
    std::string text;
    for (int step = 0; step < 60 && states.GoesOn(state); ++step) {
      std::vector<unsigned char> next;
      for (int byte = 0; byte < 256; ++byte) {
        if (states.Next(state, static_cast<unsigned char>(byte)) != GrammarStates::kNone) {
          next.push_back(static_cast<unsigned char>(byte));
        }
      }
      ASSERT_FALSE(next.empty());
      const unsigned char byte = next[random() % next.size()];
      text += static_cast<char>(byte);
      state = states.Next(state, byte);
      if (states.Ends(state) && random() % 3 == 0) break;
    }
    if (!states.Ends(state)) continue;
    ++num_whole;
    try {
      JsonValue::Parse(text, "x");
    } catch (const InvalidInput& error) {
      const std::string what = error.what();
      const bool is_duplicate =
          what.find("twice") != std::string::npos || what.find("uplicate") != std::string::npos;
      EXPECT_TRUE(is_duplicate) << text << "\n" << what;
    }
  }
  EXPECT_GT(num_whole, 50);
}

TEST(JsonGrammar, Objects) {
  const Schema schema(R"({"type": "object", "properties": {"a": {"type": "integer"},
      "b": {"type": "string"}, "c": {"type": "boolean"}}, "required": ["a", "c"],
      "additionalProperties": false})");
  EXPECT_EQ(schema(R"({"a": 1, "b": "x", "c": true})"), "whole");
  EXPECT_EQ(schema(R"({"a":1,"c":false})"), "whole");
  EXPECT_EQ(schema("{\n  \"a\": 1,\n  \"c\": true\n}"), "whole");
  EXPECT_EQ(schema(R"({"a": 1, "b": "x"})"), "refused");
  EXPECT_EQ(schema(R"({"c": true})"), "refused");
  EXPECT_EQ(schema(R"({"a": 1.5)"), "refused");
  EXPECT_EQ(schema(R"({"a": 1, "c": true, "d": 1})"), "refused");
  EXPECT_EQ(schema("{}"), "refused");
  const Schema optional(R"({"properties": {"a": {"type": "null"}, "b": {"type": "null"}}})");
  for (const char* text : {"{}", R"({"a": null})", R"({"b": null})", R"({"a": null, "b": null})"}) {
    EXPECT_EQ(optional(text), "whole") << text;
  }
  const Schema more(R"({"type": "object", "properties": {"a": {"type": "null"}},
      "additionalProperties": {"type": "integer"}})");
  EXPECT_EQ(more(R"({"a": null})"), "whole");
  EXPECT_EQ(more(R"({"a": null, "a": 2})"), "refused") << "a is no integer";
  const Schema members(R"({"type": "object", "additionalProperties": {"type": "integer"}})");
  EXPECT_EQ(members(R"({"x": 1, "y": 2})"), "whole");
  EXPECT_EQ(members(R"({"y": null})"), "refused");
}

TEST(JsonGrammar, ArraysTextsAndChoices) {
  const Schema list(
      R"({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3})");
  EXPECT_EQ(list("[1]"), "refused");
  EXPECT_EQ(list("[1, 2]"), "whole");
  EXPECT_EQ(list("[1, 2, 3]"), "whole");
  EXPECT_EQ(list("[1, 2, 3, 4"), "refused");
  EXPECT_EQ(Schema(R"({"type": "array", "maxItems": 0})")("[]"), "whole");
  EXPECT_EQ(Schema(R"({"type": "array", "maxItems": 0})")("[1"), "refused");
  EXPECT_EQ(Schema(R"({"type": "array", "minItems": 1})")("[]"), "refused");
  EXPECT_EQ(Schema(R"({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "null"}],
      "items": false, "minItems": 2})")("[1, null]"),
            "whole");
  const Schema text(R"({"type": "string", "minLength": 1, "maxLength": 2})");
  EXPECT_EQ(text("\"\""), "refused");
  EXPECT_EQ(text("\"\xc3\xa9\xc3\xa9\""), "whole");  // Characters, not bytes.
  EXPECT_EQ(text("\"abc"), "refused");
  const Schema values(R"({"enum": ["a", "ab", 1, 12, null, {"x": [1]}]})");
  for (const char* one : {"\"a\"", "\"ab\"", "1", "12", "null", R"({"x":[1]})"}) {
    EXPECT_EQ(values(one), "whole") << one;
  }
  EXPECT_EQ(values("\"b"), "refused");
  EXPECT_EQ(Schema(R"({"const": "\u00e9\""})")("\"\xc3\xa9\\\"\""), "whole");
  const Schema any(R"({"anyOf": [{"type": "integer"}, {"type": ["boolean", "null"]}]})");
  for (const char* one : {"3", "true", "null"}) EXPECT_EQ(any(one), "whole") << one;
  EXPECT_EQ(any("\""), "refused");
  EXPECT_EQ(Schema(R"({"type": "integer", "nullable": true})")("null"), "whole");
}

TEST(JsonGrammar, References) {
  const Schema tree(R"({"$defs": {"node": {"type": "object", "properties": {
      "value": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
      "required": ["value", "next"], "additionalProperties": false}}, "$ref": "#/$defs/node"})");
  EXPECT_EQ(tree(R"({"value": 1, "next": {"value": 2, "next": null}})"), "whole");
  EXPECT_EQ(tree(R"({"value": 1, "next": {"value": 2)"), "open");
  EXPECT_EQ(tree(R"({"value": 1, "next": {"next")"), "refused");
  EXPECT_THROW(Schema(R"({"$ref": "#"})"), InvalidInput) << "it describes nothing";
  EXPECT_THROW(
      Schema(R"({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]})"),
      InvalidInput)
      << "it never ends";
  EXPECT_THROW(Schema(R"({"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/x"},
                   "$defs": {"x": {"$ref": "#/$defs/x"}}})"),
               InvalidInput);
  // A member that never ends is never begun.
  const Schema without(R"({"$defs": {"x": {"$ref": "#/$defs/x"}}, "type": "object",
      "properties": {"a": {"$ref": "#/$defs/x"}, "b": {"type": "null"}}})");
  EXPECT_EQ(without(R"({"b": null})"), "whole");
  EXPECT_EQ(without(R"({"a)"), "refused");
}

// The readings of such a text are 4^depth: what has not been found out in time counts as no text.
TEST(GrammarStates, AmbiguousRecursionIsBounded) {
  for (const char* text : {R"({"anyOf": [{"type": "array", "items": {"$ref": "#"}},
                      {"type": "array", "items": {"$ref": "#"}, "maxItems": 9},
                      {"type": "array", "items": {"$ref": "#"}, "maxItems": 8},
                      {"type": "array", "items": {"$ref": "#"}, "maxItems": 7}]})"}) {
    JsonGrammar json;
    const int32_t start = json.AddSchema(JsonValue::Parse(text, "schema"), "schema");
    GrammarStates states(&json.grammar(), start);
    int32_t state = states.start();
    const double begin = testing_support::CpuSeconds();
    for (int depth = 0; depth < 40 && state != GrammarStates::kNone; ++depth) {
      states.AllowWork(1 << 18);
      state = states.Next(state, '[');
    }
    EXPECT_EQ(state, GrammarStates::kNone);
    EXPECT_LT(testing_support::CpuSeconds() - begin, 20.0);
  }
  // A deep text of a schema that is not ambiguous needs next to nothing.
  JsonGrammar json;
  GrammarStates states(&json.grammar(), json.any_value());
  int32_t state = states.start();
  for (int depth = 0; depth < 2000; ++depth) {
    states.AllowWork(100);
    state = states.Next(state, '[');
    ASSERT_NE(state, GrammarStates::kNone) << depth;
  }
}

TEST(JsonGrammar, RefusesWhatItDoesNotEnforce) {
  for (const char* keyword :
       {"pattern", "format", "minimum", "maximum", "multipleOf", "oneOf", "allOf", "not", "if",
        "uniqueItems", "patternProperties", "propertyNames", "contains", "minProperties"}) {
    const std::string text = std::string(R"({"type": "string", ")") + keyword + "\": 1}";
    try {
      Schema schema(text);
      FAIL() << keyword;
    } catch (const Unsupported& error) {
      EXPECT_NE(std::string(error.what()).find(keyword), std::string::npos) << error.what();
    }
  }
  EXPECT_THROW(Schema(R"({"type": "thing"})"), InvalidInput);
  EXPECT_THROW(Schema(R"({"enum": []})"), InvalidInput);
  EXPECT_THROW(Schema(R"({"enum": ["b"], "const": "a"})"), Unsupported);
  EXPECT_THROW(Schema(R"({"type": "string", "enum": [1]})"), InvalidInput);
  EXPECT_EQ(Schema(R"({"type": ["string", "null"], "enum": [1, "a", null]})")("1"), "refused");
  EXPECT_EQ(Schema(R"({"type": ["string", "null"], "enum": [1, "a", null]})")("null"), "whole");
  EXPECT_THROW(Schema(R"({"type": ["array", "array"]})"), InvalidInput);
  EXPECT_THROW(Schema(R"({"$ref": "#/$defs/x"})"), InvalidInput);
  EXPECT_THROW(Schema(R"({"$ref": "http://x"})"), Unsupported);
  EXPECT_THROW(Schema(R"({"properties": {}, "required": ["x"]})"), Unsupported);
  EXPECT_THROW(Schema(R"({"type": "array", "minItems": 3, "maxItems": 2})"), InvalidInput);
  std::string large = R"({"type": "object", "properties": {)";
  for (int i = 0; i < 200; ++i) {
    large += (i == 0 ? "\"p" : ", \"p") + std::to_string(i) +
             R"(": {"type": "string", "maxLength": 4096})";
  }
  EXPECT_THROW(Schema(large + "}}"), Unsupported) << "bounded before memory is";
}

// States that are forgotten leave the one that counts as it was.
TEST(GrammarStates, Compact) {
  JsonGrammar json;
  GrammarStates states(&json.grammar(), json.any_value());
  int32_t state = states.start();
  const std::string text = R"({"a": [[1, {"b": "c)";
  const std::string rest = R"("}], 2]})";
  for (const char c : text) {
    state = states.Compact(states.Next(state, static_cast<unsigned char>(c)));
    EXPECT_EQ(states.num_states(), 1);
  }
  for (const char c : rest) {
    EXPECT_FALSE(states.Ends(state));
    state = states.Next(state, static_cast<unsigned char>(c));
    ASSERT_NE(state, GrammarStates::kNone);
  }
  EXPECT_TRUE(states.Ends(state));
  EXPECT_FALSE(states.GoesOn(state));
}

}  // namespace
}  // namespace pmkvq::server
