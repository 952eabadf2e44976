// Cocktail's widths against golden data; which chunks of a prompt get them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "pmkvq/research/methods/cocktail_rule.h"
#include "support/method_golden.h"
#include "support/method_rule.h"

namespace pmkvq {
namespace {

using testing_support::ExpectRefused;
using testing_support::kMethodShape;
using testing_support::MakeRows;
using testing_support::MethodGolden;
using testing_support::QuantizeToken;
using testing_support::Rows;

TEST(Cocktail, GoldenWidths) {
  const MethodGolden golden("confkv");
  const std::vector<float> similarity = golden.Floats("cocktail.similarity");
  const std::vector<int32_t> bits = golden.Integers("cocktail.bits");
  EXPECT_EQ(CocktailWidths({}, {similarity.begin(), similarity.end()}),
            std::vector<int>(bits.begin(), bits.end()));
}

// Two blocks; a token's embedding is one of three directions.
class CocktailCache : public testing::Test {
 protected:
  static constexpr UniformKvGeometry kGeometry{2, 4, 2, 64};
  static constexpr int64_t kWidth = 3;

  CocktailCache() : CocktailCache("cocktail-own") {}
  explicit CocktailCache(const std::string& spec) {
    KvOptions options;
    options.spec = spec;
    store_ = MakeKvStore(options, {kGeometry, 1, 4096, 1});
    seq_ = *store_->Open();
  }

  // The embedding of tokens first, first + 1, ..: chunk 0 like the question, chunk 1 unlike, chunk
  // 2 between; the question (from token 96 on) is (1, 0, 0).
  static std::vector<float> Embeddings(int64_t first, int64_t count) {
    std::vector<float> rows;
    for (int64_t t = first; t < first + count; ++t) {
      const int64_t chunk = t / 32;
      const std::vector<float> row = chunk == 1   ? std::vector<float>{0, 1, 0}
                                     : chunk == 2 ? std::vector<float>{0.8f, 0, 0.6f}
                                                  : std::vector<float>{1, 0, 0};
      rows.insert(rows.end(), row.begin(), row.end());
    }
    return rows;
  }

  void Append(int64_t count, bool ends_prompt) {
    ASSERT_EQ(store_->Reserve(seq_, count), ReserveResult::kReserved);
    const int64_t first = store_->NumTokens(seq_);
    store_->BeginForward({{.seq = seq_, .num_tokens = count, .ends_prompt = ends_prompt}});
    const std::vector<float> embeddings = Embeddings(first, count);
    for (int64_t layer = 0; layer < 2; ++layer) {
      const Rows rows = MakeRows(kGeometry, 3, layer, first, count);
      std::vector<float> out(rows.q.size());
      store_->OfferExtras(layer, {nullptr, embeddings.data(), kWidth});
      store_->AppendAndAttend(layer, rows.q.data(), rows.k.data(), rows.v.data(), out.data());
    }
    store_->EndForward();
  }

  // Keys of both blocks: the given ones, with chunks 1 and 2 at 2 and 4 bits once `decided`.
  void ExpectKeys(int64_t count, bool decided) const {
    for (int64_t layer = 0; layer < 2; ++layer) {
      Rows rows = MakeRows(kGeometry, 3, layer, 0, count);
      for (float& x : rows.k) x = ToFloat(ToF16(x));
      for (int64_t t = 32; decided && t < 96; ++t) {
        QuantizeToken(rows.k, kMethodShape, t, 64, t < 64 ? 2 : 4);
      }
      const SimulatedBlock& block =
          dynamic_cast<const SimulatedKvCache&>(*store_).Block(seq_, layer);
      for (int64_t t = 0; t < count; ++t) {
        for (int64_t head = 0; head < 2; ++head) {
          for (int64_t i = 0; i < 64; ++i) {
            ASSERT_NEAR(block.Key(t, head)[i], rows.k[kMethodShape.At(t, head, i)], 1e-5)
                << layer << " " << t;
          }
        }
      }
    }
  }
  int64_t Bytes() const { return store_->LayerStats(seq_, 1).bytes; }

  std::unique_ptr<KvStore> store_;
  SequenceId seq_ = 0;
};

TEST_F(CocktailCache, ChunksGetWidthsWhenThePromptEnds) {
  Append(50, false);
  Append(60, false);
  ExpectKeys(110, false);
  EXPECT_EQ(Bytes(), 110 * 512);
  Append(20, true);  // 130 tokens: chunks 0 to 2, and the question from 96 on.
  ExpectKeys(130, true);
  // A width of a byte for each of three chunks; 128 values at 2 bits, G = 64: 32 bytes and two
  // pairs of 4, at 4 bits 64 bytes.
  EXPECT_EQ(Bytes(), (32 + 34) * 512 + 32 * 2 * (32 + 8) + 32 * 2 * (64 + 8) + 3);
  Append(100, false);
  Append(30, true);  // A second prompt changes nothing.
  ExpectKeys(260, true);
  EXPECT_EQ(Bytes(), (32 + 164) * 512 + 32 * 2 * (32 + 8) + 32 * 2 * (64 + 8) + 3);
  store_->Truncate(seq_, 40);
  EXPECT_EQ(Bytes(), 32 * 512 + 8 * 2 * (32 + 8) + 2);
}

TEST_F(CocktailCache, AShortPromptStays) {
  Append(63, true);  // One whole chunk: the question.
  ExpectKeys(63, false);
  EXPECT_EQ(Bytes(), 63 * 512);
}

TEST(Cocktail, NamesWhatIsWrong) {
  ExpectRefused("cocktail-own:chunk=4", "chunk=4, expected a whole number in [8, 1024]");
  ExpectRefused("cocktail-own:alpha=2", "alpha=2, expected");
}

}  // namespace
}  // namespace pmkvq
