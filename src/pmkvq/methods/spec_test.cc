#include "pmkvq/methods/spec.h"

#include <gtest/gtest.h>

#include "pmkvq/base/error.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;

TEST(MethodSpec, ReadsNameAndKeys) {
  const MethodSpec plain = ParseMethodSpec("static-4");
  EXPECT_EQ(plain.name, "static-4");
  EXPECT_TRUE(plain.keys.empty());

  const MethodSpec full = ParseMethodSpec("pm-kvq:bits=4+scales=off");
  EXPECT_EQ(full.name, "pm-kvq");
  const std::map<std::string, std::string> expected = {{"bits", "4"}, {"scales", "off"}};
  EXPECT_EQ(full.keys, expected);
}

TEST(MethodSpec, ReadsWords) {
  const MethodSpec spec = ParseMethodSpec("kivi:reference+bits=4");
  EXPECT_EQ(spec.words, std::set<std::string>{"reference"});
  EXPECT_EQ(spec.keys.at("bits"), "4");
  EXPECT_EQ(spec.text, "kivi:reference+bits=4");
}

TEST(MethodSpec, ReadsNumbersInTheirRange) {
  const MethodSpec spec = ParseMethodSpec("x:a=4+b=0.25+c=4x+d=nan");
  EXPECT_EQ(spec.OneOf("a", 2, {4, 2}), 4);
  EXPECT_EQ(spec.OneOf("other", 2, {4, 2}), 2);
  EXPECT_EQ(spec.Integer("a", 0, 4, 4), 4);
  EXPECT_EQ(spec.Real("b", 0, 0, 1), 0.25);
  EXPECT_EQ(spec.Real("other", 0.5, 0, 1), 0.5);
  const auto expect = [](auto action, const std::string& part) {
    ExpectError<InvalidInput>(action, {"--kv", "'x:a=4+b=0.25+c=4x+d=nan'", part});
  };
  expect([&] { spec.OneOf("a", 2, {8, 2}); }, "a=4, expected one of 8, 2");
  expect([&] { spec.Integer("a", 0, 5, 9); }, "a=4, expected a number in [5, 9]");
  expect([&] { spec.Integer("b", 0, 0, 9); }, "b=0.25");
  expect([&] { spec.Integer("c", 0, 0, 9); }, "c=4x");
  expect([&] { spec.Real("d", 0, 0, 1); }, "d=nan");
}

TEST(MethodSpec, ReadsNames) {
  const MethodSpec spec = ParseMethodSpec("x:axis=token");
  EXPECT_EQ(spec.NameOf("axis", "channel", {"token", "channel"}), "token");
  EXPECT_EQ(spec.NameOf("other", "channel", {"token", "channel"}), "channel");
  ExpectError<InvalidInput>(
      [&] {
        spec.NameOf("axis", "a", {"a", "b"});
      },
      {"--kv", "'x:axis=token'", "axis=token, expected one of a, b"});
}

TEST(MethodSpec, NamesUnknownKeysAndWords) {
  const MethodSpec spec = ParseMethodSpec("x:a=4+w");
  spec.CheckNames({"a", "b"}, {"w"});
  ExpectError<InvalidInput>([&] { spec.CheckNames({"b"}, {"w"}); },
                            {"unknown key 'a' for x, expected b=, w"});
  ExpectError<InvalidInput>([&] { spec.CheckNames({"a"}); }, {"unknown word 'w'", "expected a="});
}

TEST(MethodSpec, KeepsWhatFollowsTheFirstEqualsSign) {
  EXPECT_EQ(ParseMethodSpec("x:a=b=c").keys.at("a"), "b=c");
}

TEST(MethodSpec, RefusesWhatIsNoSpec) {
  for (const char* text : {"", ":bits=4"}) {
    ExpectError<InvalidInput>([&] { ParseMethodSpec(text); }, {"--kv", "no method name"});
  }
  for (const char* text : {"pm-kvq:", "pm-kvq:bits=", "pm-kvq:=4", "pm-kvq:bits=4+",
                           "pm-kvq:+bits=4", "pm-kvq:bits=4++scales=on"}) {
    ExpectError<InvalidInput>([&] { ParseMethodSpec(text); },
                              {"--kv", text, "expected name[:key=value[+key=value...]]"});
  }
  ExpectError<InvalidInput>([] { ParseMethodSpec("pm-kvq:bits=4+bits=2"); },
                            {"--kv", "'bits' is given twice"});
  ExpectError<InvalidInput>([] { ParseMethodSpec("kivi:reference+reference"); },
                            {"--kv", "'reference' is given twice"});
}

}  // namespace
}  // namespace pmkvq
