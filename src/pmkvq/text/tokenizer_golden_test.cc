// The tokenizer against published vectors, against a naive oracle, and as an inverse of itself.
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <limits>
#include <map>

#include "pmkvq/io/file.h"
#include "pmkvq/io/json.h"
#include "pmkvq/text/byte_alphabet.h"
#include "pmkvq/text/normalizer.h"
#include "pmkvq/text/tokenizer.h"
#include "pmkvq/text/utf8.h"
#include "support/tokenizer_vectors.h"

namespace pmkvq {
namespace {

using testing_support::ExpectTokenizerVectors;
using testing_support::LoadTokenizerVectors;
using testing_support::SplitAt;

const std::string kRoot = PMKVQ_SOURCE_DIR;

const std::shared_ptr<const Tokenizer>& LoadedR1Distill() {
  static const auto tokenizer = Tokenizer::Load(kRoot + "/tests/golden/tokenizers");
  return tokenizer;
}

const Tokenizer& R1Distill() { return *LoadedR1Distill(); }

const Tokenizer& Longcot() {
  static const auto tokenizer = Tokenizer::Load(kRoot + "/models/longcot-10m");
  return *tokenizer;
}

TEST(TokenizerGolden, PublishedVectorsAreExact) {
  ExpectTokenizerVectors(LoadedR1Distill(), LoadTokenizerVectors("vectors.inp", "vectors.out"),
                         "tokenizer.json", [](const std::string& text) { return Nfc(text); });
}

TEST(TokenizerGolden, R1DistillTokens) {
  const Tokenizer& tokenizer = R1Distill();
  EXPECT_EQ(tokenizer.vocab_size(), 151665);
  EXPECT_EQ(tokenizer.TokenId("<think>"), 151648);
  EXPECT_TRUE(tokenizer.IsSpecial(151643));
  EXPECT_FALSE(tokenizer.IsSpecial(151648));
  EXPECT_EQ(tokenizer.Encode("<｜User｜>a<think>\n"),
            (std::vector<int32_t>{151644, 64, 151648, 198}));
  // add_bos_token of tokenizer_config.json; the post_processor has none.
  EXPECT_EQ(tokenizer.prefix_ids(), std::vector<int32_t>{151646});
  EXPECT_EQ(tokenizer.EncodeWhole("a", false), (std::vector<int32_t>{151646, 64}));
  // Not special in the file, but only a template may write them.
  EXPECT_EQ(tokenizer.Decode(tokenizer.Encode("<｜User｜>", false)), "<｜User｜>");
  EXPECT_GT(tokenizer.Encode("<｜User｜>", false).size(), 1u);
}

TEST(TokenizerGolden, CalibrationTextRoundTrips) {
  const Tokenizer& tokenizer = Longcot();
  EXPECT_EQ(tokenizer.TokenId("<|im_start|>"), 543);
  EXPECT_EQ(tokenizer.vocab_size(), 547);
  const auto lines = SplitAt(ReadFile(kRoot + "/models/longcot-10m/calibration.jsonl"), "\n");
  size_t num_texts = 0;
  for (const std::string& line : lines) {
    if (line.empty()) continue;
    const std::string text = JsonValue::Parse(line, "calibration.jsonl").At("text").AsString();
    const std::vector<int32_t> ids = tokenizer.Encode(text);
    ASSERT_EQ(ids.front(), 543);
    ASSERT_EQ(tokenizer.Decode(ids), text);
    const std::vector<int32_t> plain = tokenizer.Encode(text, false);
    ASSERT_NE(plain.front(), 543);
    ASSERT_EQ(tokenizer.Decode(plain), text);
    ++num_texts;
  }
  EXPECT_GT(num_texts, 50u);
}

std::string RandomText() {
  const auto points = *rc::gen::container<std::vector<uint32_t>>(rc::gen::oneOf(
      rc::gen::inRange<uint32_t>(0, 0x80), rc::gen::inRange<uint32_t>(0x80, 0x500),
      rc::gen::inRange<uint32_t>(0x2000, 0xD800), rc::gen::inRange<uint32_t>(0xE000, 0x110000),
      rc::gen::elementOf(std::vector<uint32_t>{' ', '\n', '\r', '\t', '\'', 's', 'a', '0'})));
  std::string text;
  for (const uint32_t point : points) AppendUtf8(point, &text);
  return text;
}

TEST(TokenizerProperty, DecodeOfEncodeIsTheNormalisedText) {
  EXPECT_TRUE(rc::check("round trip", [] {
    const std::string text = RandomText();
    RC_ASSERT(R1Distill().Decode(R1Distill().Encode(text, false)) == Nfc(text));
    RC_ASSERT(Longcot().Decode(Longcot().Encode(text, false)) == Nfc(text));
  }));
}

// BPE as it is defined: merge the leftmost pair of the lowest rank until no pair merges.
class NaiveBpe {
 public:
  NaiveBpe() {
    const JsonValue merges =
        JsonValue::ParseFile(kRoot + "/models/longcot-10m/tokenizer.json").At("model").At("merges");
    for (size_t i = 0; i < merges.size(); ++i) {
      const std::string merge = merges.At(i).AsString();
      const size_t space = merge.find(' ');
      ranks_[{merge.substr(0, space), merge.substr(space + 1)}] = i;
    }
  }

  std::vector<int32_t> Encode(const std::string& word) const {
    std::vector<std::string> tokens;
    for (const char byte : word) tokens.push_back(BytesToAlphabet({&byte, 1}));
    while (true) {
      size_t best = std::numeric_limits<size_t>::max();
      size_t best_at = 0;
      for (size_t i = 0; i + 1 < tokens.size(); ++i) {
        const auto rank = ranks_.find({tokens[i], tokens[i + 1]});
        if (rank == ranks_.end() || rank->second >= best) continue;
        best = rank->second;
        best_at = i;
      }
      if (best == std::numeric_limits<size_t>::max()) break;
      tokens[best_at] += tokens[best_at + 1];
      tokens.erase(tokens.begin() + static_cast<std::ptrdiff_t>(best_at) + 1);
    }
    std::vector<int32_t> ids;
    for (const std::string& token : tokens) ids.push_back(Longcot().TokenId(token));
    return ids;
  }

 private:
  std::map<std::pair<std::string, std::string>, size_t> ranks_;
};

TEST(TokenizerProperty, MergesEqualTheNaiveLoop) {
  const NaiveBpe naive;
  EXPECT_TRUE(rc::check("one word of letters is one piece", [&] {
    // Letters of the model's language, so that many pairs merge, in long words.
    const auto word = *rc::gen::container<std::string>(
        rc::gen::elementOf(std::string("aeinorstlcdmuphgtheandersteprowfirst")));
    RC_ASSERT(Longcot().Encode(word) == naive.Encode(word));
  }));
}

}  // namespace
}  // namespace pmkvq
