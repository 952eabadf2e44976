#include "pmkvq/research/calib/samples.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "pmkvq/base/error.h"
#include "support/calibration_support.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::TempFolder;

class DrawSamplesTest : public ::testing::Test {
 protected:
  DrawSamplesTest() {
    config_.vocab_size = 576;
    config_.max_position_embeddings = 8192;
    options_.dataset = std::string(PMKVQ_SOURCE_DIR) + "/models/longcot-10m/calibration.jsonl";
    options_.seq_len = 64;
    options_.num_samples = 10;
    tokenizer_ = Tokenizer::Load(std::string(PMKVQ_SOURCE_DIR) + "/models/longcot-10m");
  }
  Samples Draw(bool with_tokenizer = true) {
    return DrawSamples(options_, config_, with_tokenizer ? tokenizer_.get() : nullptr, &log_);
  }
  void UseRows(const std::string& rows) { options_.dataset = folder_.Write("rows.jsonl", rows); }
  void ExpectInvalid(std::initializer_list<std::string> parts, bool with_tokenizer = true) {
    ExpectError<InvalidInput>([&] { Draw(with_tokenizer); }, parts);
  }

  TempFolder folder_;
  ModelConfig config_;
  SampleOptions options_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  testing_support::RecordingLog log_;
};

TEST_F(DrawSamplesTest, ConcatCutsShuffledTexts) {
  const Samples samples = Draw();
  ASSERT_EQ(samples.tokens.size(), 10u);
  for (const auto& tokens : samples.tokens) EXPECT_EQ(tokens.size(), 64u);
  EXPECT_EQ(Draw().tokens, samples.tokens);
  options_.seed = 43;
  EXPECT_NE(Draw().tokens, samples.tokens);
  EXPECT_TRUE(log_.warnings.empty());
}

TEST_F(DrawSamplesTest, ConcatDropsNothingBetweenSamples) {
  UseRows("{\"text\":\"one two\"}\n{\"text\":\"thr<|im_end|>ee\"}\n{\"text\":\"four five six\"}\n");
  options_.seq_len = 2;
  options_.num_samples = 1000;
  std::vector<int32_t> all;
  for (const auto& tokens : Draw().tokens) all.insert(all.end(), tokens.begin(), tokens.end());
  // Some order of the three texts, without the odd token at the end.
  std::vector<std::string> texts = {"one two", "thr<|im_end|>ee", "four five six"};
  std::sort(texts.begin(), texts.end());
  bool found = false;
  do {
    std::vector<int32_t> expected;
    for (const std::string& text : texts) {
      const std::vector<int32_t> ids = tokenizer_->Encode(text);
      expected.insert(expected.end(), ids.begin(), ids.end());
    }
    expected.resize(expected.size() / 2 * 2);
    found = found || expected == all;
  } while (std::next_permutation(texts.begin(), texts.end()));
  EXPECT_TRUE(found);
  // A special token in a text is parsed as one.
  EXPECT_NE(std::find(all.begin(), all.end(), tokenizer_->TokenId("<|im_end|>")), all.end());
  ASSERT_EQ(log_.warnings.size(), 1u);
  EXPECT_NE(log_.warnings[0].find("1000 were asked for"), std::string::npos);
}

TEST_F(DrawSamplesTest, SingleTakesOneTextEach) {
  options_.packing = Packing::kSingle;
  const std::vector<int32_t> begin = tokenizer_->Encode("<|im_start|>user\n");
  const Samples samples = Draw();
  ASSERT_EQ(samples.tokens.size(), 10u);
  std::set<std::vector<int32_t>> distinct;
  for (const auto& tokens : samples.tokens) {
    EXPECT_EQ(tokens.size(), 64u);
    EXPECT_TRUE(std::equal(begin.begin(), begin.end(), tokens.begin()));
    distinct.insert(tokens);
  }
  EXPECT_GT(distinct.size(), 1u);
}

TEST_F(DrawSamplesTest, SingleSkipsShortTexts) {
  UseRows("{\"text\":\"short\"}\n{\"text\":\"" + std::string(500, '7') + "\"}\n");
  options_.packing = Packing::kSingle;
  EXPECT_EQ(Draw().tokens.size(), 1u);
  ASSERT_EQ(log_.warnings.size(), 1u);
  EXPECT_NE(log_.warnings[0].find("1 rows were too short"), std::string::npos);
  options_.seq_len = 100000;
  ExpectInvalid({"rows.jsonl", "no sample", "100000"});
}

TEST_F(DrawSamplesTest, RowsWithIdsAreUsedAsTheyAre) {
  UseRows("{\"input_ids\":[5,6,7]}\n{\"input_ids\":[9]}\n{\"input_ids\":[1,2,3,4,5]}\n");
  options_.seq_len = 4;
  options_.num_samples = 2;
  options_.effective_len = 8;
  const Samples samples = Draw(/*with_tokenizer=*/false);
  EXPECT_EQ(samples.tokens, (std::vector<std::vector<int32_t>>{{5, 6, 7}, {1, 2, 3, 4}}));
  EXPECT_EQ(samples.Positions(0, 8), (std::vector<int64_t>{0, 2, 4}));
  EXPECT_EQ(samples.Positions(1, 8), (std::vector<int64_t>{0, 2, 4, 6}));
  EXPECT_EQ(samples.Positions(1, 0), (std::vector<int64_t>{0, 1, 2, 3}));
  options_.num_samples = 1;
  EXPECT_EQ(Draw(/*with_tokenizer=*/false).tokens.size(), 1u);
}

TEST_F(DrawSamplesTest, IdsAndTextsMayBeMixed) {
  UseRows("{\"text\":\"" + std::string(500, '3') + "\"}\n{\"input_ids\":[5,6,7]}\n");
  const Samples samples = Draw();
  ASSERT_GE(samples.tokens.size(), 2u);
  EXPECT_EQ(samples.tokens[0], (std::vector<int32_t>{5, 6, 7}));
  EXPECT_EQ(samples.tokens[1].size(), 64u);
  ExpectInvalid({"rows.jsonl", "tokenizer.json"}, /*with_tokenizer=*/false);
}

TEST_F(DrawSamplesTest, BadDataAndOptionsAreNamed) {
  UseRows("{\"input_ids\":[5,6]}\n{\"input_ids\":[5,576]}\n");
  ExpectInvalid({"rows.jsonl", "row 2", "576", "0 to 575"});
  UseRows("{\"input_ids\":[-1,6]}\n");
  ExpectInvalid({"rows.jsonl", "-1"});
  config_.vocab_size = 10;  // A tokenizer of another model.
  UseRows("{\"text\":\"hello there\"}\n");
  ExpectInvalid({"rows.jsonl", "row 1", "0 to 9"});
  config_.vocab_size = 576;
  options_.num_samples = 0;
  ExpectInvalid({"n-samples", "found 0"});
  options_.num_samples = 1;
  options_.seq_len = 1;
  ExpectInvalid({"seq-len", "found 1"});
  options_.seq_len = 64;
  options_.effective_len = 100;
  ExpectInvalid({"effective-len", "100", "64"});
}

TEST_F(DrawSamplesTest, PositionsBeyondTheModelAreAWarning) {
  options_.effective_len = 64 * 200;
  EXPECT_EQ(Draw().tokens.size(), 10u);
  ASSERT_EQ(log_.warnings.size(), 1u);
  EXPECT_NE(log_.warnings[0].find("12800"), std::string::npos);
}

TEST(Packing, NamesReadBack) {
  for (const Packing packing : {Packing::kConcat, Packing::kSingle}) {
    EXPECT_EQ(ParsePacking(NameOf(packing)), packing);
  }
  ExpectError<InvalidInput>([] { ParsePacking("pairs"); }, {"pairs", "concat or single"});
}

}  // namespace
}  // namespace pmkvq
