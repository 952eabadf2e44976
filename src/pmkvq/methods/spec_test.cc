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

TEST(MethodSpec, KeepsWhatFollowsTheFirstEqualsSign) {
  EXPECT_EQ(ParseMethodSpec("x:a=b=c").keys.at("a"), "b=c");
}

TEST(MethodSpec, RefusesWhatIsNoSpec) {
  for (const char* text : {"", ":bits=4"}) {
    ExpectError<InvalidInput>([&] { ParseMethodSpec(text); }, {"--kv", "no method name"});
  }
  for (const char* text : {"pm-kvq:", "pm-kvq:bits", "pm-kvq:bits=", "pm-kvq:=4", "pm-kvq:bits=4+",
                           "pm-kvq:+bits=4", "pm-kvq:bits=4++scales=on"}) {
    ExpectError<InvalidInput>([&] { ParseMethodSpec(text); },
                              {"--kv", text, "expected name[:key=value[+key=value...]]"});
  }
  ExpectError<InvalidInput>([] { ParseMethodSpec("pm-kvq:bits=4+bits=2"); },
                            {"--kv", "'bits' is given twice"});
}

}  // namespace
}  // namespace pmkvq
