#include "pmkvq/server/api/body_fields.h"

#include <gtest/gtest.h>

#include <functional>

#include "pmkvq/server/api/api_error.h"

namespace pmkvq::server {
namespace {

ApiError Refusal(const std::function<void()>& action) {
  try {
    action();
  } catch (const RefusedRequest& refusal) {
    return refusal.error();
  }
  ADD_FAILURE() << "nothing was refused";
  return {};
}

TEST(BodyFields, NullIsAbsentAndUnknownFieldsAreKnown) {
  BodyFields body(
      BodyFields::Parse(R"({"a": null, "b": 2.5, "c": true, "d": ["x", "y"], "e": 1})"));
  EXPECT_EQ(body.Number("a", 0, 1), std::nullopt);
  EXPECT_EQ(body.Number("b", 0, 3), 2.5);
  EXPECT_EQ(body.Bool("c"), true);
  EXPECT_EQ(body.Texts("d", 2, 1), (std::vector<std::string>{"x", "y"}));
  EXPECT_EQ(body.unknown(), std::vector<std::string>{"e"});
}

TEST(BodyFields, WrongValuesNameTheFieldWhatWasFoundAndWhatWasExpected) {
  const auto refusal = [](const std::string& text, const std::function<void(BodyFields&)>& read) {
    return Refusal([&] {
      BodyFields body(BodyFields::Parse(text), "outer.");
      read(body);
    });
  };
  const auto expect = [](const ApiError& error, const std::string& found,
                         const std::string& expected) {
    EXPECT_EQ(error.status, 400);
    EXPECT_EQ(error.param, "outer.x");
    EXPECT_NE(error.message.find(found), std::string::npos) << error.message;
    EXPECT_NE(error.message.find(expected), std::string::npos) << error.message;
  };
  expect(refusal(R"({"x": 3})", [](BodyFields& b) { b.Number("x", 0, 2); }), "3", "from 0 to 2");
  expect(refusal(R"({"x": "3"})", [](BodyFields& b) { b.Number("x", 0, 2); }), "\"3\"", "number");
  expect(refusal(R"({"x": 1.5})", [](BodyFields& b) { b.Integer("x", 0, 2); }), "1.5", "integer");
  expect(refusal(R"({"x": 9223372036854775808})", [](BodyFields& b) { b.Integer("x", 0, 2); }),
         "9223372036854775808", "");
  expect(refusal(R"({"x": "abc"})", [](BodyFields& b) { b.Text("x", 2); }), "3 bytes", "2");
  expect(refusal(R"({"x": [1]})", [](BodyFields& b) { b.Texts("x", 2, 2); }), "1", "string");
  expect(refusal(R"({"x": ["a", "b"]})", [](BodyFields& b) { b.Texts("x", 1, 2); }), "2 strings",
         "at most 1");
  expect(refusal(R"({"x": {"y": 1}})", [](BodyFields& b) { b.Refuse({"x"}); }), "{\"y\":1}",
         "not support");
}

TEST(BodyFields, RefusedFieldsThatAskForNothingPass) {
  BodyFields body(
      BodyFields::Parse(R"({"a": null, "b": false, "c": 0, "d": "", "e": [], "f": {}})"));
  body.Refuse({"a", "b", "c", "d", "e", "f", "g"});
  EXPECT_TRUE(body.unknown().empty());
}

TEST(BodyFields, BodiesThatAreNoObjects) {
  EXPECT_EQ(Refusal([] { BodyFields body(BodyFields::Parse("[]")); }).code, "invalid_value");
  EXPECT_EQ(Refusal([] { BodyFields::Parse("{"); }).code, "invalid_json");
  EXPECT_EQ(Refusal([] { BodyFields::Parse(std::string(100, '[')); }).code, "invalid_json");
  EXPECT_EQ(Refusal([] { BodyFields::Parse("{\"a\": \"\xff\"}"); }).code, "invalid_utf8");
}

TEST(ApiErrorTest, BodyIsAnObject) {
  EXPECT_EQ(
      ErrorBody(InvalidRequest("c", "p", "m \"x\"")),
      R"({"error":{"message":"m \"x\"","type":"invalid_request_error","param":"p","code":"c"}})");
  EXPECT_NE(ErrorBody(InvalidRequest("c", "", "m")).find("\"param\":null"), std::string::npos);
}

}  // namespace
}  // namespace pmkvq::server
