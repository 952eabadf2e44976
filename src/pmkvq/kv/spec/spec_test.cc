#include "pmkvq/kv/spec/spec.h"

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

TEST(MethodSpec, ReadsDeclaredKeys) {
  const SpecKeys declared = {
      ChoiceKey("bits", {"4", "2"}, "2", ""), RealKey("share", 0, 1, "0", ""),
      IntegerKey("sink", 0, 9, "0", ""),      ChoiceKey("axis", {"token", "channel"}, "token", ""),
      FileKey("from", "none", "", {"none"}),  WordKey("reference", "")};
  const MethodSpec spec =
      ParseMethodSpec("x:bits=4+share=0.25+sink=9+axis=channel+reference+from=2");
  spec.Check(declared);
  EXPECT_EQ(spec.Integer("bits", 2), 4);
  EXPECT_EQ(spec.Integer("other", 2), 2);
  EXPECT_EQ(spec.Real("share", 0.5), 0.25);
  EXPECT_EQ(spec.Real("other", 0.5), 0.5);
  EXPECT_EQ(spec.Text("axis", "token"), "channel");
  EXPECT_EQ(spec.Text("other", "token"), "token");
  const std::vector<std::pair<std::string, std::string>> files = {{"from", "2"}};
  EXPECT_EQ(spec.Files(declared), files);
  EXPECT_TRUE(ParseMethodSpec("x:from=none").Files(declared).empty());

  const auto refused = [&](const std::string& part, const std::string& message) {
    ExpectError<InvalidInput>([&] { ParseMethodSpec("x:" + part).Check(declared); },
                              {"--kv", "'x:" + part + "'", message});
  };
  refused("bits=8", "bits=8, expected one of 4, 2");
  refused("bits=04", "bits=04");
  refused("share=1.5", "share=1.5, expected a number in [0, 1]");
  refused("share=nan", "share=nan");
  refused("sink=10", "sink=10, expected a whole number in [0, 9]");
  refused("sink=4x", "sink=4x");
  refused("sink=0.5", "sink=0.5");
  refused("axis=both", "axis=both, expected one of token, channel");
  refused("top=1",
          "unknown key 'top' for x, expected bits=, share=, sink=, axis=, from=, reference");
  refused("paper", "unknown word 'paper'");
  refused("bits", "unknown word 'bits'");
  refused("reference=1", "unknown key 'reference'");
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
