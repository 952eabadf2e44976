#include "pmkvq/kernels/attention/latent_attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "pmkvq/base/error.h"
#include "pmkvq/kernels/attention/latent_attention_internal.h"
#include "pmkvq/kernels/attention/random_latents.h"
#include "support/expect_error.h"
#include "support/target_suite.h"

namespace pmkvq {
namespace {

PMKVQ_TARGET_SUITE(LatentAttentionTest, internal::LatentAttentionTarget,
                   "kernels/attention/latent_kernel.cc");

LatentShape MakeShape(int64_t num_heads, int64_t latent, int64_t rope,
                      DType float_type = DType::kF16, DType metadata_type = DType::kF16) {
  return {.num_heads = num_heads,
          .latent = latent,
          .rope = rope,
          .group = std::min<int64_t>(latent, kMaxGroup),
          .float_type = float_type,
          .metadata_type = metadata_type};
}

// Largest error of one output value against the double oracle; attention_test.cc derives such a
// bound. Here elements are expanded first: each is within u (|min| + 2 range) of its value, at most
// 5 u max|x|. A score of r + dr products errs by E = u (sqrt(r + dr) + 5) max|x| |q|; the weighted
// mean of c by 2 max|x| E, the elements' own errors, and those of its additions.
float Tolerance(const LatentShape& shape, RandomLatents& latents) {
  int64_t tokens = latents.sequence().num_rows;
  for (const PageTokens& page : latents.sequence().pages) tokens += page.num_tokens;
  float max_q = 0.0f;
  const auto dim = static_cast<size_t>(shape.key_values());
  for (size_t first = 0; first < latents.q().size(); first += dim) {
    const float* q = latents.q().data() + first;
    max_q = std::max(max_q, std::sqrt(std::inner_product(q, q + dim, q, 0.0f)));
  }
  constexpr float kUnit = 0x1p-24f;
  const float max = latents.max_value();
  const float score =
      kUnit * (std::sqrt(static_cast<float>(shape.key_values())) + 5.0f) * max * max_q;
  const float tiles = static_cast<float>(tokens) / 32.0f + 4.0f;
  const float sums = kUnit * (std::sqrt(static_cast<float>(tokens)) + 2.0f * tiles + 5.0f);
  return 2.0f * max * score + 2.0f * max * sums;
}

LatentPlan PlanOf(const LatentShape& shape, std::span<const AttentionSequence> sequences,
                  int threads) {
  LatentPlan plan;
  PlanLatentAttention(shape, sequences, threads, plan);
  return plan;
}

std::vector<float> Attended(const LatentShape& shape, RandomLatents& latents, int threads = 1) {
  const AttentionSequence only = latents.sequence();
  std::fill(latents.out().begin(), latents.out().end(), NAN);
  AttentionScratch scratch;
  RunLatentAttention(PlanOf(shape, {&only, 1}, threads), latents.operands(), scratch);
  return latents.out();
}

void ExpectMatchesOracle(const LatentShape& shape, RandomLatents& latents, int threads = 1) {
  latents.AttendByOracle();
  const std::vector<float> expected = latents.out();
  const float tolerance = Tolerance(shape, latents);
  const std::vector<float> actual = Attended(shape, latents, threads);
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_NEAR(actual[i], expected[i], tolerance) << "value " << i;
  }
}

// A sink, closed pages of all widths (c and k_r apart), and an open page.
std::vector<LatentPageSpec> MixedPages() {
  return {{16, 16, 1, 1}, {2, 8}, {4, 4}, {8, 16}, {16, 8}, {4, 2}, {16, 16, 37}};
}

TEST_P(LatentAttentionTest, EveryShapeMatchesTheOracle) {
  struct Widths {
    int64_t latent;
    int64_t rope;
  };
  for (const Widths widths : {Widths{8, 8}, {24, 16}, {32, 8}, {72, 24}, {128, 64}, {256, 32}}) {
    for (const int64_t num_heads : {1, 3, 4, 16, 40}) {
      for (const int64_t num_rows : {1, 3, 7}) {
        SCOPED_TRACE(testing::Message() << "r " << widths.latent << " dr " << widths.rope << " H "
                                        << num_heads << " T " << num_rows);
        const LatentShape shape = MakeShape(num_heads, widths.latent, widths.rope);
        RandomLatents latents(shape, MixedPages(), num_rows);
        ASSERT_NO_FATAL_FAILURE(ExpectMatchesOracle(shape, latents));
      }
    }
  }
}

TEST_P(LatentAttentionTest, DeepSeeksShapesMatchTheOracle) {
  for (const int64_t num_heads : {16, 128}) {
    for (const int64_t num_rows : {1, 5}) {
      SCOPED_TRACE(testing::Message() << "H " << num_heads << " T " << num_rows);
      const LatentShape shape = MakeShape(num_heads, 512, 64);
      RandomLatents latents(shape, {{16, 16, 1, 1}, {4, 8}, {2, 8}, {16, 16, 9}}, num_rows);
      ASSERT_NO_FATAL_FAILURE(ExpectMatchesOracle(shape, latents));
    }
  }
}

TEST_P(LatentAttentionTest, EveryDtypeMatchesTheOracleMisaligned) {
  const DType types[] = {DType::kF16, DType::kBF16, DType::kF32};
  for (const DType float_type : types) {
    for (const DType metadata_type : types) {
      for (const int64_t num_rows : {1, 6}) {
        SCOPED_TRACE(testing::Message()
                     << NameOf(float_type) << " " << NameOf(metadata_type) << " T " << num_rows);
        const LatentShape shape = MakeShape(5, 64, 16, float_type, metadata_type);
        RandomLatents latents(shape, MixedPages(), num_rows, /*seed=*/3, /*shift=*/1);
        ASSERT_NO_FATAL_FAILURE(ExpectMatchesOracle(shape, latents));
      }
    }
  }
}

// Each width alone, so that an error in one does not hide among others.
TEST_P(LatentAttentionTest, EveryWidthAndTokenCountMatchesTheOracle) {
  for (const int bits : {16, 8, 4, 2}) {
    for (const int32_t tokens : {1, 2, 7, 8, 23, 25, 63, 64, 65, 127, 128}) {
      SCOPED_TRACE(testing::Message() << bits << " bits, " << tokens << " tokens");
      const LatentShape shape = MakeShape(3, 256, 64);
      RandomLatents decode(shape, {{bits, bits, tokens}}, 1);
      ASSERT_NO_FATAL_FAILURE(ExpectMatchesOracle(shape, decode));
      RandomLatents exact(shape, {{bits, bits, tokens, tokens}}, 5);
      ASSERT_NO_FATAL_FAILURE(ExpectMatchesOracle(shape, exact));
    }
  }
}

TEST_P(LatentAttentionTest, FirstTokensWithoutPages) {
  for (const int64_t num_heads : {4, 16}) {
    for (const int64_t num_rows : {1, 2, 4, 5, 130, 300}) {
      const LatentShape shape = MakeShape(num_heads, 32, 8);
      RandomLatents latents(shape, {}, num_rows);
      ASSERT_NO_FATAL_FAILURE(ExpectMatchesOracle(shape, latents)) << num_rows;
    }
  }
}

TEST_P(LatentAttentionTest, LargeSinksAndEmptyPages) {
  for (const int64_t num_rows : {1, 9}) {
    const LatentShape shape = MakeShape(2, 16, 8);
    RandomLatents latents(shape, {{16, 16, 300, 300}, {16, 16, 0}, {4, 4, 0}, {4, 2, 5}}, num_rows);
    ASSERT_NO_FATAL_FAILURE(ExpectMatchesOracle(shape, latents));
  }
}

std::vector<LatentPageSpec> ManyPages(int count) {
  std::vector<LatentPageSpec> pages = {{16, 16, 3, 3}};
  for (int i = 0; i < count; ++i) pages.push_back({i % 3 == 0 ? 2 : 4, i % 2 == 0 ? 4 : 8});
  pages.push_back({16, 16, 128});
  pages.push_back({16, 16, 1});
  return pages;
}

TEST_P(LatentAttentionTest, LongSequencesOverSeveralRunsOfPages) {
  for (const int count : {2, 17, 130}) {
    const LatentShape shape = MakeShape(4, 32, 8);
    RandomLatents latents(shape, ManyPages(count), 2);
    ASSERT_NO_FATAL_FAILURE(ExpectMatchesOracle(shape, latents, /*threads=*/3)) << count;
  }
}

// Large scores and scores far apart: weights are shifted by their largest.
TEST_P(LatentAttentionTest, LargeScoresStayFinite) {
  const LatentShape shape = MakeShape(4, 32, 8);
  for (const float size : {300.0f, -300.0f}) {
    RandomLatents latents(shape, ManyPages(5), 3);
    for (float& q : latents.q()) q *= size;
    for (const float value : Attended(shape, latents)) {
      ASSERT_LE(std::abs(value), latents.max_value() * 1.001f);
    }
  }
}

// Bits of a row depend neither on other sequences nor on threads.
TEST_P(LatentAttentionTest, BatchesAndThreadsChangeNoBit) {
  const LatentShape shape = MakeShape(16, 128, 64);
  RandomLatents a(shape, ManyPages(9), 1, 1);
  RandomLatents b(shape, MixedPages(), 7, 2);
  RandomLatents c(shape, {}, 2, 3);
  std::vector<std::vector<float>> alone;
  for (RandomLatents* latents : {&a, &b, &c}) alone.push_back(Attended(shape, *latents));

  std::vector<float> q, c_new, kr_new;
  for (RandomLatents* latents : {&a, &b, &c}) {
    q.insert(q.end(), latents->q().begin(), latents->q().end());
    c_new.insert(c_new.end(), latents->c_new().begin(), latents->c_new().end());
    kr_new.insert(kr_new.end(), latents->kr_new().begin(), latents->kr_new().end());
  }
  const AttentionSequence sequences[] = {a.sequence(0), b.sequence(1), c.sequence(8)};
  const KvPageView* const pages[] = {a.pages(), b.pages(), c.pages()};
  for (const int threads : {1, 2, 5}) {
    std::vector<float> out(static_cast<size_t>(10 * shape.num_heads * shape.latent), NAN);
    AttentionScratch scratch;
    RunLatentAttention(PlanOf(shape, sequences, threads),
                       {pages, q.data(), c_new.data(), kr_new.data(), out.data()}, scratch);
    std::vector<float> expected;
    for (const std::vector<float>& part : alone) {
      expected.insert(expected.end(), part.begin(), part.end());
    }
    ASSERT_EQ(out, expected) << threads;
  }
}

TEST(LatentAttentionPlanTest, ScratchDoesNotGrowWithThePages) {
  const LatentShape shape = MakeShape(16, 512, 64);
  const auto bytes_of = [&](size_t num_pages, int64_t num_rows) {
    const std::vector<PageTokens> pages(num_pages, PageTokens{128, 128});
    const AttentionSequence sequence{pages, num_rows, 0};
    return PlanOf(shape, {&sequence, 1}, 2).scratch_bytes;
  };
  EXPECT_EQ(bytes_of(1000, 64), bytes_of(1, 64));
  // Decode: a partial result, H r floats and H maxima and sums, for each run of 16 pages.
  EXPECT_EQ(bytes_of(1600, 1) - bytes_of(1, 1), 100u * 16 * (512 + 2) * sizeof(float));
}

TEST(LatentAttentionPlanTest, DevicesAreRefused) {
  const LatentShape shape = MakeShape(2, 16, 8);
  RandomLatents latents(shape, {}, 1);
  const AttentionSequence only = latents.sequence();
  LatentOperands operands = latents.operands();
  operands.device = {Device::kCuda, 0};
  AttentionScratch scratch;
  testing_support::ExpectError<Unsupported>(
      [&] {
        RunLatentAttention(PlanOf(shape, {&only, 1}, 1), operands, scratch);
      },
      {"latents", "expected the CPU"});
}

}  // namespace
}  // namespace pmkvq
