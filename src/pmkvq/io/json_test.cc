#include "pmkvq/io/json.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <bit>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "pmkvq/base/error.h"
#include "pmkvq/io/utf8.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::TempFolder;

JsonValue Parse(const std::string& text) { return JsonValue::Parse(text, "file.json"); }

TEST(Json, ReadsEveryKind) {
  const JsonValue json = Parse(
      R"({"n": null, "b": true, "i": -7, "d": 2.5, "e": 1e3, "s": "h\u00e9\n", "a": [1, 2], "o": {}})");
  EXPECT_TRUE(json.IsObject());
  EXPECT_EQ(json.size(), 8u);
  EXPECT_TRUE(json.At("n").IsNull());
  EXPECT_TRUE(json.At("b").AsBool());
  EXPECT_EQ(json.At("i").AsInt(), -7);
  EXPECT_EQ(json.At("i").AsDouble(), -7.0);
  EXPECT_EQ(json.At("d").AsDouble(), 2.5);
  EXPECT_EQ(json.At("e").kind(), JsonValue::Kind::kNumber);
  EXPECT_EQ(json.At("s").AsString(), "h\xc3\xa9\n");
  EXPECT_EQ(json.At("a").AsIntArray(), (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(json.At("a").AsDoubleArray(), (std::vector<double>{1, 2}));
  EXPECT_EQ(json.At("a").At(1).AsInt(), 2);
  EXPECT_EQ(json.At("o").size(), 0u);
  EXPECT_EQ(json.Keys(), (std::vector<std::string>{"n", "b", "i", "d", "e", "s", "a", "o"}));
}

TEST(Json, FindAndHas) {
  const JsonValue json = Parse(R"({"a": {"b": 1}, "n": null})");
  EXPECT_TRUE(json.Has("a"));
  EXPECT_FALSE(json.Has("n"));
  EXPECT_FALSE(json.Has("x"));
  EXPECT_TRUE(json.Find("x").IsNull());
  EXPECT_EQ(json.Find("a").Find("b").AsInt(), 1);
  EXPECT_FALSE(json.Find("x").Has("y"));  // Missing and null count as an empty object.
  EXPECT_FALSE(json.At("n").Has("y"));
  ExpectError<InvalidInput>([&] { json.Find("a").Find("b").Has("c"); },
                            {"[file.json] a.b: found 1, expected an object"});
}

TEST(Json, ValuesOutliveTheirRoot) {
  const auto deep = [] { return Parse(R"({"a": [{"b": "text"}]})").At("a").At(0).At("b"); }();
  const auto missing = [] { return Parse(R"({"a": {}})").At("a").Find("x").Find("y"); }();
  EXPECT_EQ(deep.AsString(), "text");
  EXPECT_EQ(deep.Where(), "file.json: a[0].b");
  EXPECT_EQ(missing.Where(), "file.json: a.x.y");
}

TEST(Json, WrongValuesAreNamed) {
  const JsonValue json = Parse(
      R"({"o": {"x": "y", "big": 18446744073709551615, "list": [1, "z", 2.5]}, "odd key\n": 1})");
  const JsonValue o = json.At("o");
  const auto expect = [](auto action, const std::string& message) {
    ExpectError<InvalidInput>(action, {message});
  };
  expect([&] { o.At("x").AsInt(); }, "[file.json] o.x: found \"y\", expected an integer");
  expect([&] { o.At("x").AsBool(); }, "o.x: found \"y\", expected true or false");
  expect([&] { o.At("x").AsDouble(); }, "o.x: found \"y\", expected a number");
  expect([&] { o.At("list").AsString(); }, "o.list: found [1,\"z\",2.5], expected a string");
  expect([&] { o.At("list").AsIntArray(); }, "o.list[1]: found \"z\", expected an integer");
  expect([&] { o.At("list").AsDoubleArray(); }, "o.list[1]: found \"z\", expected a number");
  expect([&] { o.At("list").At(3); }, "expected at least 4 elements");
  expect([&] { o.At("list").Keys(); }, "expected an object");
  expect([&] { o.At("list").At("k"); }, "expected an object");
  expect([&] { o.At(0); }, "expected an array");
  expect([&] { o.AsIntArray(); }, "expected an array of integers");
  expect([&] { o.AsDoubleArray(); }, "expected an array of numbers");
  expect([&] { o.At("list").At(2).AsInt(); }, "o.list[2]: found 2.5, expected an integer");
  expect([&] { o.At("list").At(0).AsInt(2, 5); }, "found 1, expected an integer from 2 to 5");
  expect([&] { o.At("big").AsInt(); }, "expected an integer");
  expect([&] { o.At("gone"); }, "o.gone: found nothing, expected a value");
  expect([&] { json.Find("o").Find("gone").AsInt(); },
         "o.gone: found nothing, expected an integer");
  expect([&] { json.AsInt(); }, "top level: found {");
  expect([&] { json.At("odd key\n").AsString(); }, "\"odd key\\n\": found 1");
  ExpectError<Unsupported>([&] { o.At("x").Refuse("\"z\""); },
                           {"o.x: found \"y\", expected \"z\""});
}

TEST(Json, LongValuesAreCutInErrors) {
  const JsonValue json =
      Parse("[\"" + std::string(79, 'a') + "\xc3\xa9" + std::string(1000, 'b') + "\"]");
  try {
    json.At(0).AsInt();
    FAIL();
  } catch (const InvalidInput& error) {
    const std::string message = error.what();
    EXPECT_LT(message.size(), 200u);
    EXPECT_EQ(ValidUtf8Prefix(message), message.size());
    EXPECT_NE(message.find("a..., expected"), std::string::npos) << message;
  }
}

TEST(Json, RefusesWhatIsNotJson) {
  for (const char* text :
       {"", " ", "{", "[1,]", "{\"a\":1,}", "{'a':1}", "nan", "[NaN]", "[1e999]", "// no\n1",
        "[1] 2", "\"\xff\"", "\"\xed\xa0\x80\"", "[01]", "\"a\nb\"", "{\"a\" 1}", "\"\\ud800\""}) {
    ExpectError<InvalidInput>([&] { Parse(text); }, {"[file.json] not valid JSON at byte "});
  }
  ExpectError<InvalidInput>([] { Parse(std::string("{}\0{}", 5)); }, {"at byte 3: NUL byte"});
  ExpectError<InvalidInput>([] { Parse("[1, x]"); }, {"at byte 5: ", "Invalid value"});
}

TEST(Json, NumbersKeepTheirSpelling) {
  for (const std::string number :
       {"12345678901234567890", "-9223372036854775809", "18446744073709551617", "1.50", "1e3",
        "-0.10", "1E+2", "0.1234567890123456789012345", "123456789012345678901234567890", "-0"}) {
    const JsonValue json = Parse("{\"a\":[" + number + " ]}").At("a").At(0);
    EXPECT_EQ(json.AsTextOrNumber(), number);
    EXPECT_EQ(json.Dump(), number);
    EXPECT_EQ(json.AsDouble(), std::strtod(number.c_str(), nullptr)) << number;
  }
  EXPECT_EQ(Parse(R"(["1.50"])").At(0).AsTextOrNumber(), "1.50");
  EXPECT_EQ(Parse("-7").AsTextOrNumber(), "-7");
  ExpectError<InvalidInput>([] { Parse("[true]").At(0).AsTextOrNumber(); },
                            {"[0]: found true, expected a string or a number"});
}

TEST(Json, StringsOfEveryLengthAndEscape) {
  for (const size_t length : {0, 1, 254, 255, 256, 300, 70000}) {
    const std::string text(length, 'x');
    const JsonValue json = Parse("{\"" + text + "\":[\"" + text + "\", 7]}");
    EXPECT_EQ(json.At(text).At(0).AsStringView(), text);
    EXPECT_EQ(json.At(text).At(1).AsInt(), 7);
    EXPECT_EQ(json.Keys(), std::vector<std::string>{text});
  }
  EXPECT_EQ(Parse(R"(["\u0000\/\ud83d\ude00\"\\"])").At(0).AsString(),
            std::string("\0/\xf0\x9f\x98\x80\"\\", 8));
  for (const char* half : {R"("\ud800")", R"("\udc00")", R"("\ud800\u0041")"}) {
    ExpectError<InvalidInput>([&] { Parse(half); }, {"not valid JSON at byte"});
  }
  ExpectError<InvalidInput>([] { Parse(R"({"a":1,"\u0061":2})"); }, {"a: found twice"});
}

TEST(Json, ReadsInAnyOrder) {
  const JsonValue json = Parse(R"({"a":[0,[1,2],3],"b":{"c":4},"d":5})");
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(json.At("d").AsInt(), 5);
    EXPECT_EQ(json.At("b").At("c").AsInt(), 4);
    EXPECT_EQ(json.At("b").At("c").Where(), "file.json: b.c");
    const JsonValue a = json.At("a");
    for (const size_t index : {2, 0, 1, 2, 1, 0}) {
      EXPECT_EQ(a.At(index).Where(), "file.json: a[" + std::to_string(index) + "]");
    }
    EXPECT_FALSE(json.Has("e"));
  }
  EXPECT_TRUE(json.Find("e").IsMissing());
  EXPECT_FALSE(Parse(R"({"e":null})").Find("e").IsMissing());
}

TEST(Json, LimitsAreNamed) {
  const auto parse = [](const std::string& text, const JsonLimits& limits) {
    JsonValue::Parse(text, "file.json", limits);
  };
  JsonLimits limits;
  limits.max_nodes = 3;
  parse("[1,{\"a\":2}]", JsonLimits());
  parse("[1,2]", limits);
  ExpectError<InvalidInput>([&] { parse("[1,2,3]", limits); },
                            {"[file.json] JSON: found more than 3 values"});
  limits = {};
  limits.max_bytes = 4;
  ExpectError<InvalidInput>([&] { parse("[1,2]", limits); }, {"found 5 bytes, expected at most 4"});
  limits = {};
  limits.max_depth = 1;
  parse("[1]", limits);
  ExpectError<InvalidInput>([&] { parse("[[]]", limits); }, {"deeper than the 1 levels"});
}

TEST(Json, DuplicateKeysAreErrors) {
  ExpectError<InvalidInput>([] { Parse(R"({"a": {"b": 1, "c": 2, "b": 3}})"); },
                            {"[file.json] b: found twice, expected every key once"});
}

TEST(Json, NestingIsLimited) {
  const auto nested = [](size_t depth) {
    return std::string(depth, '[') + std::string(depth, ']');
  };
  EXPECT_TRUE(Parse(nested(128)).IsArray());
  EXPECT_EQ(Parse(nested(128)).Dump(), nested(128));
  ExpectError<InvalidInput>([&] { Parse(nested(129)); }, {"nested deeper than the 128 levels"});
  ExpectError<InvalidInput>([&] { Parse(std::string(5'000'000, '[')); }, {"nested deeper"});
}

TEST(Json, LargeObjectsAreLookedUpQuickly) {
  JsonWriter writer;
  writer.BeginObject();
  constexpr int kMembers = 50000;
  for (int i = 0; i < kMembers; ++i) writer.Key("token" + std::to_string(i)).Int(i);
  const JsonValue json = Parse(writer.EndObject().text());
  for (int i = 0; i < kMembers; ++i) {
    ASSERT_EQ(json.At("token" + std::to_string(i)).AsInt(), i);
  }
}

TEST(Json, ParsesFiles) {
  const TempFolder folder;
  const std::string path = folder.Write("a.json", "{\"x\": []}");
  ExpectError<InvalidInput>([&] { JsonValue::ParseFile(path).At("x").AsInt(); },
                            {path + "] x: found [], expected an integer"});
  ExpectError<IoError>([&] { JsonValue::ParseFile(folder.File("b.json")); },
                       {"b.json", "No such file"});
}

TEST(JsonWriter, WritesOneLine) {
  JsonWriter json;
  json.BeginObject().Key("bits").Array(std::vector<int64_t>{4, 2}).Key("loss").Number(0.25);
  json.Key("list").BeginArray().Int(-1).Bool(true).Bool(false).Null().String("q\"\\\n\r\t\x01\x7f");
  json.EndArray().Key("ids").Array(std::vector<int32_t>{7}).Key("none").BeginObject().EndObject();
  json.Key("xs").Array(std::vector<double>{1, 1e300, std::nan("")}).EndObject();
  EXPECT_EQ(json.text(),
            R"({"bits":[4,2],"loss":0.25,"list":[-1,true,false,null,"q\"\\\n\r\t\u0001\u007f"],)"
            R"("ids":[7],"none":{},"xs":[1.0,1e+300,null]})");
}

TEST(JsonWriter, Indents) {
  JsonWriter json(2);
  json.BeginObject().Key("a").Array(std::vector<int64_t>{1, 2}).Key("b").BeginArray().Int(1);
  json.BeginArray().EndArray().EndArray().EndObject();
  EXPECT_EQ(json.text(), "{\n  \"a\": [1, 2],\n  \"b\": [\n    1,\n    []\n  ]\n}");
}

TEST(JsonValue, BoolOr) {
  const JsonValue json = Parse(R"({"yes": true, "no": false, "null": null, "text": "true"})");
  for (const bool otherwise : {true, false}) {
    EXPECT_TRUE(json.BoolOr("yes", otherwise));
    EXPECT_FALSE(json.BoolOr("no", otherwise));
    EXPECT_EQ(json.BoolOr("null", otherwise), otherwise);
    EXPECT_EQ(json.BoolOr("absent", otherwise), otherwise);
  }
  ExpectError<InvalidInput>([&] { json.BoolOr("text", true); },
                            {"text: found \"true\", expected true or false"});
}

TEST(JsonWriter, ReplacesInvalidUtf8) {
  JsonWriter json;
  json.String("a\xff\xe2\x82z\xf0\x9f\x98\x80");
  EXPECT_EQ(json.text(), "\"a\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbdz\xf0\x9f\x98\x80\"");
}

TEST(JsonWriter, NumbersReadBackToTheSameDouble) {
  rc::check("Parse(Number(x)) == x", [](uint64_t bits) {
    const double value = std::bit_cast<double>(bits);
    JsonWriter json;
    json.Number(value);
    const JsonValue read = Parse(json.text());
    if (!std::isfinite(value)) {
      RC_ASSERT(read.IsNull());
      return;
    }
    RC_ASSERT(read.kind() == JsonValue::Kind::kNumber);
    RC_ASSERT(std::bit_cast<uint64_t>(read.AsDouble()) == bits);
  });
  for (const double value : {0.0, -0.0, 0.1, 5e-324, std::numeric_limits<double>::max()}) {
    JsonWriter json;
    json.Number(value);
    EXPECT_EQ(std::bit_cast<uint64_t>(Parse(json.text()).AsDouble()),
              std::bit_cast<uint64_t>(value));
  }
}

TEST(JsonWriter, StringsReadBack) {
  rc::check("Parse(String(s)) == s for valid UTF-8", [](const std::string& bytes) {
    const std::string text = bytes.substr(0, ValidUtf8Prefix(bytes));
    JsonWriter json;
    json.String(text);
    RC_ASSERT(Parse(json.text()).AsString() == text);
  });
}

TEST(JsonWriterDeathTest, MisuseIsACallerBug) {
  EXPECT_DEATH(JsonWriter().BeginObject().Int(1), "needs a key");
  EXPECT_DEATH(JsonWriter().BeginArray().Key("a"), "belongs into an object");
  EXPECT_DEATH(JsonWriter().BeginArray().EndObject(), "unbalanced");
  EXPECT_DEATH(JsonWriter().BeginObject().Key("a").EndObject(), "unbalanced");
  EXPECT_DEATH(JsonWriter().Int(1).Int(2), "one top-level value");
  EXPECT_DEATH(JsonWriter().BeginArray().text(), "unfinished");
}

TEST(Json, DumpIsCompactAndReadsBack) {
  const std::string text = R"({"a":[1,2.5,null,true,"x"],"b":{"c":false}})";
  EXPECT_EQ(Parse(text).Dump(), text);
}

}  // namespace
}  // namespace pmkvq
