#include "pmkvq/research/eval/replicas.h"

#include <gtest/gtest.h>

#include "pmkvq/base/error.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;

TEST(Replicas, AreChosenByCacheThreadsAndBatch) {
  constexpr int64_t kMiB = int64_t{1} << 20;
  EXPECT_EQ(ChooseReplicas(19 * kMiB, 32 * kMiB, 16, 64), 16);
  EXPECT_EQ(ChooseReplicas(19 * kMiB, 32 * kMiB, 16, 16), 4);
  EXPECT_EQ(ChooseReplicas(19 * kMiB, 32 * kMiB, 2, 64), 2);
  EXPECT_EQ(ChooseReplicas(19 * kMiB, 32 * kMiB, 16, 3), 1);
  EXPECT_EQ(ChooseReplicas(33 * kMiB, 32 * kMiB, 16, 64), 1) << "weights come from memory";
}

TEST(Replicas, SharesAreEqualUpToOne) {
  const std::vector<EngineShare> shares = ShareOut(3, 8, 10);
  ASSERT_EQ(shares.size(), 3u);
  EXPECT_EQ(shares[0].num_threads, 3);
  EXPECT_EQ(shares[1].num_threads, 3);
  EXPECT_EQ(shares[2].num_threads, 2);
  EXPECT_EQ(shares[0].max_sequences, 4);
  EXPECT_EQ(shares[1].max_sequences, 3);
  EXPECT_EQ(shares[2].max_sequences, 3);
  EXPECT_EQ(ShareOut(4, 2, 4).back().num_threads, 1) << "never none";
  ExpectError<InvalidInput>([] { ShareOut(5, 8, 4); }, {"--replicas", "found 5", "4"});
}

}  // namespace
}  // namespace pmkvq
