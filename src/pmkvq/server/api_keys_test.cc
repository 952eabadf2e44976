#include "pmkvq/server/api_keys.h"

#include <gtest/gtest.h>

#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

namespace pmkvq::server {
namespace {

using testing_support::ExpectError;

TEST(ApiKeys, AreReadFromAFileAndNeverQuoted) {
  const testing_support::TempFolder folder;
  const std::string path = folder.File("keys");
  WriteFileAtomically(path, "# clients\n\nfirst-key-of-twenty\r\n  \nsecond-key-of-twenty \n");
  const ApiKeys keys = ApiKeys::FromFile(path);
  EXPECT_TRUE(keys.Check("first-key-of-twenty").has_value());
  EXPECT_EQ(keys.Check("second-key-of-twenty")->size(), 8U);
  EXPECT_NE(keys.Check("first-key-of-twenty"), keys.Check("second-key-of-twenty"));
  for (const char* wrong : {"", "first-key-of-twent", "first-key-of-twenty ", "# clients"}) {
    EXPECT_FALSE(keys.Check(wrong).has_value()) << wrong;
  }
  WriteFileAtomically(path, "# none\n");
  ExpectError<InvalidInput>([&] { ApiKeys::FromFile(path); }, {path, "no key"});
  WriteFileAtomically(path, "\nshort\n");
  try {
    ApiKeys::FromFile(path);
    FAIL() << "a short key was taken";
  } catch (const InvalidInput& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find(path + ":2"), std::string::npos);
    EXPECT_EQ(message.find("short"), std::string::npos) << "keys are secrets";
  }
}

}  // namespace
}  // namespace pmkvq::server
