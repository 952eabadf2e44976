#include "pmkvq/text/vocabulary_data.h"

#include <gtest/gtest.h>

namespace pmkvq {
namespace {

using Ids = std::vector<int32_t>;

TEST(EndTokenIds, AreThoseNamedAndControlTokensOfKnownTexts) {
  TokenizerData data;
  EXPECT_EQ(EndTokenIds(data), Ids{});
  data.tokens = {"a", "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<|im_start|>"};
  data.types = {TokenType::kNormal, TokenType::kControl, TokenType::kUserDefined,
                TokenType::kControl, TokenType::kControl};
  EXPECT_EQ(EndTokenIds(data), (Ids{1, 3}));
  data.eos = 3;
  data.eot = 2;
  data.eom = 0;
  EXPECT_EQ(EndTokenIds(data), (Ids{0, 1, 2, 3}));
}

}  // namespace
}  // namespace pmkvq
