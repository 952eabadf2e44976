#include "pmkvq/base/shard.h"

#include <gtest/gtest.h>

#include <vector>

#include "pmkvq/base/error.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;

TEST(Shard, EveryUnitBelongsToOne) {
  for (const int64_t count : {1, 2, 3, 7}) {
    std::vector<int> owners(20);
    for (int64_t index = 0; index < count; ++index) {
      int64_t owned = 0;
      for (int64_t unit = 0; unit < 20; ++unit) {
        if (!Shard{index, count}.Owns(unit)) continue;
        ++owners[static_cast<size_t>(unit)];
        ++owned;
      }
      EXPECT_GE(owned, 20 / count);
      EXPECT_LE(owned, 20 / count + 1);
    }
    EXPECT_EQ(owners, std::vector<int>(20, 1));
  }
}

TEST(Shard, TextsReadBack) {
  for (const Shard shard : {Shard{0, 1}, Shard{0, 4}, Shard{3, 4}, Shard{11, 1000}}) {
    EXPECT_EQ(ParseShard(TextOf(shard), "--shard"), shard);
    EXPECT_EQ(ParseShardFileName(FileNameOf(shard)), shard);
  }
  EXPECT_EQ(TextOf({1, 4}), "2/4");
  EXPECT_EQ(FileNameOf({1, 4}), "2of4");
  for (const char* text : {"", "of", "0of4", "5of4", "1of", "of4", "1of04", "-1of4", "1of4x"}) {
    EXPECT_EQ(ParseShardFileName(text), std::nullopt) << text;
  }
}

TEST(Shard, MistakesSayWhatIsExpected) {
  const auto expect = [](const char* text, std::initializer_list<std::string> parts) {
    ExpectError<InvalidInput>([&] { ParseShard(text, "--shard"); }, parts);
  };
  expect("3/2", {"--shard", "part 3 of 2", "1/2 to 2/2", "--array=1-2"});
  expect("0/4", {"'0/4'", "count from 1", "--array=1-4"});
  expect("1/0", {"0 parts"});
  expect("1/65537", {"65537 parts", "65536"});
  for (const char* text : {"", "/", "1", "/4", "1/", "a/b", "1 /2", "1/2/3", "-1/2", "+1/2", "01/2",
                           "99999999999999999999/2"}) {
    expect(text, {"I/N", "1/4"});
  }
}

}  // namespace
}  // namespace pmkvq
