#include "pmkvq/kernels/attention/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "pmkvq/base/error.h"
#include "pmkvq/kernels/attention/attention_internal.h"
#include "pmkvq/kernels/attention/integer_products.h"
#include "pmkvq/kernels/attention/random_pages.h"
#include "pmkvq/tensor/device/device_info.h"
#include "support/expect_error.h"
#include "support/target_suite.h"

namespace pmkvq {
namespace {

PMKVQ_TARGET_SUITE(AttentionTest, internal::AttentionTarget,
                   "kernels/attention/attention_decode.cc",
                   "kernels/attention/attention_softmax.cc");

AttentionShape MakeShape(int64_t head_dim, int64_t heads_per_kv, int64_t num_kv_heads = 2,
                         DType float_type = DType::kF16, DType metadata_type = DType::kF16) {
  return {.num_heads = heads_per_kv * num_kv_heads,
          .num_kv_heads = num_kv_heads,
          .head_dim = head_dim,
          .group = std::min<int64_t>(head_dim, kMaxGroup),
          .float_type = float_type,
          .metadata_type = metadata_type,
          .scale = 1.0f / std::sqrt(static_cast<float>(head_dim))};
}

// Largest error of one output value against the double oracle. u = 2^-24, D = head_dim. Roundings
// are taken as independent, so that n of them add up to sqrt(n) u of their terms' size (Higham and
// Mary 2019); that every term below is taken at its largest leaves room for the unlucky ones: the
// largest error seen is 1/60 of the bound.
//
// A score in the factored form is step (q . codes) + min sum(q). Its terms are bounded by
// |q_i| (|min| + range), (|min| + range) <= 3 max|k|, and by Cauchy-Schwarz the root of their
// sum of squares by 3 max|k| |q|: the score errs by E = u sqrt(D + 8) 3 max|k| scale |q|.
// A weight exp(score - max) errs by the relative E, twice 2^-24 of exp, and as much for every
// rescale (one a block); the weighted mean of v by the weights' errors over its spread
// 2 max|v|, plus the roundings of n additions of terms that themselves sum up to 3 max|v|.
float Tolerance(const AttentionShape& shape, RandomSequence& sequence) {
  const AttentionSequence view = sequence.sequence();
  int64_t tokens = view.num_rows;
  for (const PageTokens& page : view.pages) tokens += page.num_tokens;
  float max_q = 0.0f;
  const auto dim = static_cast<size_t>(shape.head_dim);
  for (size_t first = 0; first < sequence.q().size(); first += dim) {
    const float* q = sequence.q().data() + first;
    max_q = std::max(max_q, std::sqrt(std::inner_product(q, q + dim, q, 0.0f)));
  }
  constexpr float kUnit = 0x1p-24f;
  const float score = kUnit * std::sqrt(static_cast<float>(shape.head_dim + 8)) * 3.0f *
                      sequence.max_k() * shape.scale * max_q;
  const auto blocks = static_cast<float>(view.pages.size()) + 4.0f;
  const float sums = kUnit * (std::sqrt(static_cast<float>(tokens)) + 2.0f * blocks);
  return 2.0f * sequence.max_v() * score + 3.0f * sequence.max_v() * sums;
}

// What rounding to 16 bits adds in the fast mode. An element of q moves by at most
// max|q| / 65534, and so, per channel, does q_i step_i by that of the largest of them; with moves
// that are independent, as above, a score moves by sqrt(D) max|q| scale 3 max|k| / 65534. A weight
// times step moves by 1 / 65534 of the largest of its page, its code's share of the value is at
// most a range, 3 max|v|, and the pages' largest weights sum up to at most 1: the output moves by
// sqrt(128) 3 max|v| / 65534.
float FastTolerance(const AttentionShape& shape, RandomSequence& sequence) {
  constexpr float kHalfStep = 1.0f / 65534.0f;
  float max_q = 0.0f;
  for (const float q : sequence.q()) max_q = std::max(max_q, std::abs(q));
  const float score = kHalfStep * std::sqrt(static_cast<float>(shape.head_dim)) * max_q *
                      shape.scale * 3.0f * sequence.max_k();
  return 2.0f * sequence.max_v() * score +
         kHalfStep * std::sqrt(static_cast<float>(kPageTokens)) * 3.0f * sequence.max_v();
}

AttentionPlan PlanOf(const AttentionShape& shape, std::span<const AttentionSequence> sequences,
                     int threads, AttentionMode mode = AttentionMode::kAccurate) {
  AttentionPlan plan;
  PlanAttention(shape, sequences, threads, mode, plan);
  return plan;
}

std::vector<float> Attended(const AttentionShape& shape, RandomSequence& sequence, int threads,
                            AttentionMode mode = AttentionMode::kAccurate) {
  const AttentionSequence only = sequence.sequence();
  std::fill(sequence.out().begin(), sequence.out().end(), NAN);
  AttentionScratch scratch;
  RunAttention(PlanOf(shape, {&only, 1}, threads, mode), sequence.operands(), scratch);
  return sequence.out();
}

void ExpectNear(const std::vector<float>& actual, const std::vector<float>& expected,
                float tolerance) {
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_NEAR(actual[i], expected[i], tolerance) << "value " << i;
  }
}

// The oracle once, then every target and mode against it.
void ExpectMatchesOracle(const AttentionShape& shape, RandomSequence& sequence, int threads = 1) {
  sequence.AttendByOracle();
  const std::vector<float> expected = sequence.out();
  const float tolerance = Tolerance(shape, sequence);
  const float fast_tolerance = tolerance + FastTolerance(shape, sequence);
  ASSERT_NO_FATAL_FAILURE(ExpectNear(Attended(shape, sequence, threads), expected, tolerance));
  SCOPED_TRACE("fast");
  ASSERT_NO_FATAL_FAILURE(ExpectNear(Attended(shape, sequence, threads, AttentionMode::kFast),
                                     expected, fast_tolerance));
}

// A sink, closed pages of all widths (K and V apart), and an open page.
std::vector<PageSpec> MixedPages() {
  return {{16, 16, 1, 1}, {2, 2}, {4, 2}, {8, 4}, {4, 8}, {16, 16, 37}};
}

// More than one run of pages.
std::vector<PageSpec> ManyPages() {
  std::vector<PageSpec> pages = {{16, 16, 3, 3}};
  for (int i = 0; i < 17; ++i) pages.push_back({i % 3 == 0 ? 2 : 4, i % 2 == 0 ? 4 : 8});
  pages.push_back({16, 16, 128});
  pages.push_back({16, 16, 1});
  return pages;
}

TEST_P(AttentionTest, EveryShapeMatchesTheOracle) {
  for (const int64_t head_dim : {8, 16, 24, 64, 80, 128, 256}) {
    for (const int64_t heads_per_kv : {1, 2, 7, 8}) {
      for (const int64_t num_rows : {1, 3, 7}) {
        SCOPED_TRACE(testing::Message()
                     << "D " << head_dim << " Gq " << heads_per_kv << " T " << num_rows);
        const AttentionShape shape = MakeShape(head_dim, heads_per_kv);
        RandomSequence sequence(shape, MixedPages(), num_rows);
        ASSERT_NO_FATAL_FAILURE(ExpectMatchesOracle(shape, sequence));
      }
    }
  }
}

// Keys per channel among others, whole and partly in use, beside values of all widths.
std::vector<PageSpec> ChannelPages() {
  const QuantAxis axis = QuantAxis::kChannel;
  return {{16, 16, 5, 5},         {2, 2, 128, 128, axis},
          {4, 2, 128, 128, axis}, {8, 4, 128, 128, axis},
          {4, 16, 71, 128, axis}, {4, 4},
          {2, 8, 1, 128, axis},   {16, 16, 37}};
}

TEST_P(AttentionTest, KeysPerChannelMatchTheOracleInEveryShape) {
  for (const int64_t head_dim : {8, 16, 24, 64, 80, 128, 256}) {
    for (const int64_t heads_per_kv : {1, 2, 7, 8}) {
      for (const int64_t num_rows : {1, 3, 7}) {
        SCOPED_TRACE(testing::Message()
                     << "D " << head_dim << " Gq " << heads_per_kv << " T " << num_rows);
        const AttentionShape shape = MakeShape(head_dim, heads_per_kv);
        RandomSequence sequence(shape, ChannelPages(), num_rows);
        ASSERT_NO_FATAL_FAILURE(ExpectMatchesOracle(shape, sequence));
      }
    }
  }
}

TEST_P(AttentionTest, KeysPerChannelMatchTheOracleInEveryDtypeMisaligned) {
  const DType types[] = {DType::kF16, DType::kBF16, DType::kF32};
  for (const DType metadata_type : types) {
    for (const int64_t num_rows : {1, 2, 4, 6}) {
      SCOPED_TRACE(testing::Message() << NameOf(metadata_type) << " T " << num_rows);
      const AttentionShape shape = MakeShape(24, 1, 2, DType::kF16, metadata_type);
      RandomSequence sequence(shape, ChannelPages(), num_rows, /*seed=*/3, /*shift=*/1);
      ASSERT_NO_FATAL_FAILURE(ExpectMatchesOracle(shape, sequence));
    }
  }
}

// A page by hand: one head, D = 8, channel d of token t is d + (t is odd), so that min = d, range 1
// and the codes of odd tokens are the largest. q picks channel 3.
TEST_P(AttentionTest, KeysPerChannelByHand) {
  AttentionShape shape = MakeShape(8, 1, 1, DType::kF32, DType::kF32);
  shape.scale = 1.0f;
  std::vector<uint8_t> codes(8 * 128 / 4);
  std::vector<float> metadata(16, 1.0f);
  std::vector<uint8_t> unpacked(128);
  for (size_t t = 0; t < 128; ++t) unpacked[t] = t % 2 == 0 ? 0 : 3;
  for (int64_t d = 0; d < 8; ++d) {
    PackCodes(128, 2, unpacked.data(), 1, codes.data() + d * 32);
    metadata[static_cast<size_t>(d)] = static_cast<float>(d);
  }
  std::vector<float> v(128 * 8, 0.0f);
  for (size_t t = 0; t < 128; ++t) v[t * 8] = static_cast<float>(t % 2);
  KvPageView page;
  page.k = {reinterpret_cast<const std::byte*>(codes.data()),
            reinterpret_cast<const std::byte*>(metadata.data()), 2, QuantAxis::kChannel};
  page.v = {reinterpret_cast<const std::byte*>(v.data()), nullptr, 16, QuantAxis::kToken};
  const float q[8] = {0, 0, 0, 1, 0, 0, 0, 0};
  const float k_new[8] = {0, 0, 0, -1000, 0, 0, 0, 0};  // No weight.
  const float v_new[8] = {};
  float out[8];
  const PageTokens tokens{128, 128};
  const AttentionSequence sequence{{&tokens, 1}, 1, 0};
  const KvPageView* const pages = &page;
  const AttentionOperands operands{{&pages, 1}, q, k_new, v_new, out};
  // 64 scores of 3 and 64 of 4; the odd ones have value 1.
  const float expected = std::exp(1.0f) / (1.0f + std::exp(1.0f));
  ref::Attend(shape, {&sequence, 1}, operands);
  EXPECT_NEAR(out[0], expected, 1e-6f);
  AttentionScratch scratch;
  RunAttention(PlanOf(shape, {&sequence, 1}, 1), operands, scratch);
  EXPECT_NEAR(out[0], expected, 1e-6f);
}

TEST_P(AttentionTest, EveryDtypeMatchesTheOracleMisaligned) {
  const DType types[] = {DType::kF16, DType::kBF16, DType::kF32};
  for (const DType float_type : types) {
    for (const DType metadata_type : types) {
      for (const int64_t num_rows : {1, 4, 6}) {
        SCOPED_TRACE(testing::Message()
                     << NameOf(float_type) << " " << NameOf(metadata_type) << " T " << num_rows);
        const AttentionShape shape = MakeShape(64, 5, 2, float_type, metadata_type);
        RandomSequence sequence(shape, MixedPages(), num_rows, /*seed=*/3, /*shift=*/1);
        ASSERT_NO_FATAL_FAILURE(ExpectMatchesOracle(shape, sequence));
      }
    }
  }
}

// Each width alone, so that an error in one does not hide among others.
TEST_P(AttentionTest, EveryWidthAndTokenCountMatchesTheOracle) {
  for (const int bits : {16, 8, 4, 2}) {
    for (const int32_t tokens : {1, 2, 7, 8, 9, 15, 31, 33, 63, 100, 127, 128}) {
      SCOPED_TRACE(testing::Message() << bits << " bits, " << tokens << " tokens");
      const AttentionShape shape = MakeShape(128, 3, 1);
      RandomSequence decode(shape, {{bits, bits, tokens}}, 1);
      ASSERT_NO_FATAL_FAILURE(ExpectMatchesOracle(shape, decode));
      RandomSequence exact(shape, {{bits, bits, tokens, tokens}}, 5);
      ASSERT_NO_FATAL_FAILURE(ExpectMatchesOracle(shape, exact));
    }
  }
}

TEST_P(AttentionTest, FirstTokensWithoutPages) {
  for (const int64_t num_rows : {1, 2, 4, 5, 130, 300}) {
    const AttentionShape shape = MakeShape(32, 2);
    RandomSequence sequence(shape, {}, num_rows);
    ASSERT_NO_FATAL_FAILURE(ExpectMatchesOracle(shape, sequence)) << num_rows;
  }
}

TEST_P(AttentionTest, LargeSinksAndEmptyPages) {
  for (const int64_t num_rows : {1, 9}) {
    const AttentionShape shape = MakeShape(16, 2);
    RandomSequence sequence(shape, {{16, 16, 300, 300}, {16, 16, 0}, {4, 4, 0}, {4, 2, 5}},
                            num_rows);
    ASSERT_NO_FATAL_FAILURE(ExpectMatchesOracle(shape, sequence));
  }
}

TEST_P(AttentionTest, LongSequencesOverSeveralRunsOfPages) {
  for (const int64_t num_rows : {1, 4, 40}) {
    const AttentionShape shape = MakeShape(64, 2);
    RandomSequence sequence(shape, ManyPages(), num_rows);
    ASSERT_NO_FATAL_FAILURE(ExpectMatchesOracle(shape, sequence, /*threads=*/2));
  }
}

// Windows of every kind: a row alone, inside a page, whole pages, more than there is. Decode,
// prefill, and chunks longer than the window.
TEST_P(AttentionTest, SlidingWindowsMatchTheOracle) {
  for (const int64_t window : {1, 2, 5, 100, 128, 129, 300, 513, 100000}) {
    for (const int64_t num_rows : {1, 3, 7, 150}) {
      SCOPED_TRACE(testing::Message() << "W " << window << " T " << num_rows);
      AttentionShape shape = MakeShape(32, 3);
      shape.sliding_window = window;
      for (const std::vector<PageSpec>& pages : {MixedPages(), ChannelPages(), {}}) {
        RandomSequence sequence(shape, pages, num_rows);
        ASSERT_NO_FATAL_FAILURE(ExpectMatchesOracle(shape, sequence));
      }
      RandomSequence many(shape, ManyPages(), num_rows);
      ASSERT_NO_FATAL_FAILURE(ExpectMatchesOracle(shape, many, /*threads=*/2));
      EXPECT_EQ(Attended(shape, many, 1), Attended(shape, many, 3));
    }
  }
}

// By hand: four tokens with values 1, 2, 4, 8 and equal scores.
TEST_P(AttentionTest, ASlidingWindowCountsTheRowItself) {
  AttentionShape shape = MakeShape(8, 1, 1, DType::kF32, DType::kF32);
  const std::vector<float> keys(8 * 8, 0.0f);
  std::vector<float> stored(2 * 8, 0.0f);
  stored[0] = 1.0f;
  stored[8] = 2.0f;
  std::vector<float> values(2 * 8, 0.0f);
  values[0] = 4.0f;
  values[8] = 8.0f;
  KvPageView page;
  page.k = {reinterpret_cast<const std::byte*>(keys.data()), nullptr, 16, QuantAxis::kToken};
  page.v = {reinterpret_cast<const std::byte*>(stored.data()), nullptr, 16, QuantAxis::kToken};
  const PageTokens tokens{2, 2};
  const AttentionSequence sequence{{&tokens, 1}, 2, 0};
  const KvPageView* const pages = &page;
  std::vector<float> out(2 * 8);
  const AttentionOperands operands{
      {&pages, 1}, keys.data(), keys.data(), values.data(), out.data()};
  const std::pair<float, float> expected[] = {{7.0f / 3, 15.0f / 4},
                                              {4.0f, 8.0f},
                                              {3.0f, 6.0f},
                                              {7.0f / 3, 14.0f / 3},
                                              {7.0f / 3, 15.0f / 4}};
  AttentionScratch scratch;
  for (int64_t window = 0; window < 5; ++window) {
    shape.sliding_window = window;
    RunAttention(PlanOf(shape, {&sequence, 1}, 1), operands, scratch);
    EXPECT_NEAR(out[0], expected[window].first, 1e-6f) << window;
    EXPECT_NEAR(out[8], expected[window].second, 1e-6f) << window;
    ref::Attend(shape, {&sequence, 1}, operands);
    EXPECT_NEAR(out[0], expected[window].first, 1e-6f) << window;
    EXPECT_NEAR(out[8], expected[window].second, 1e-6f) << window;
  }
}

// Pages that no row sees may have given their memory back.
TEST_P(AttentionTest, PagesOutsideOfTheWindowAreNotRead) {
  AttentionShape shape = MakeShape(32, 2);
  for (const int64_t num_rows : {1, 4, 20}) {
    for (const int64_t window : {1, 128, 150, 700}) {
      shape.sliding_window = window;
      RandomSequence sequence(shape, ManyPages(), num_rows);
      const std::vector<float> expected = Attended(shape, sequence, 1);
      const AttentionSequence view = sequence.sequence();
      std::vector<KvPageView> pages(sequence.pages(), sequence.pages() + view.pages.size());
      int64_t num_stored = 0;
      for (const PageTokens& tokens : view.pages) num_stored += tokens.num_tokens;
      int64_t end = 0;
      int num_freed = 0;
      for (size_t i = 0; i < pages.size(); ++i) {
        end += view.pages[i].num_tokens;
        if (end > num_stored - window + 1) break;
        pages[i] = {};
        ++num_freed;
      }
      EXPECT_GT(num_freed, 5);
      AttentionOperands operands = sequence.operands();
      const KvPageView* const first = pages.data();
      operands.pages = {&first, 1};
      std::fill(sequence.out().begin(), sequence.out().end(), NAN);
      AttentionScratch scratch;
      RunAttention(PlanOf(shape, {&view, 1}, 1), operands, scratch);
      EXPECT_EQ(sequence.out(), expected);
    }
  }
}

// So many pages that the items of decode are larger, and a last item that is not full.
TEST_P(AttentionTest, DeepSequencesOverLargerRunsOfPages) {
  const AttentionShape shape = MakeShape(64, 2);
  for (const int64_t num_pages : {internal::kDeepPages - 1, internal::kDeepPages,
                                  internal::kDeepPages + internal::kDeepRunPages + 1}) {
    RandomSequence sequence(
        shape, std::vector<PageSpec>(static_cast<size_t>(num_pages), {4, 2, 128, 128}), 1);
    ASSERT_NO_FATAL_FAILURE(ExpectMatchesOracle(shape, sequence, /*threads=*/2));
    for (const AttentionMode mode : {AttentionMode::kAccurate, AttentionMode::kFast}) {
      EXPECT_EQ(Attended(shape, sequence, 1, mode), Attended(shape, sequence, 2, mode));
    }
  }
}

// Scores of several hundreds: exp of anything but differences to the maximum would overflow.
TEST_P(AttentionTest, LargeScoresStayFinite) {
  for (const int64_t num_rows : {1, 8}) {
    const AttentionShape shape = MakeShape(64, 2);
    RandomSequence sequence(shape, MixedPages(), num_rows);
    for (float& q : sequence.q()) q *= 100.0f;
    ASSERT_NO_FATAL_FAILURE(ExpectMatchesOracle(shape, sequence));
  }
}

TEST_P(AttentionTest, BitsDoNotDependOnThreads) {
  for (const int64_t num_rows : {1, 3, 70}) {
    const AttentionShape shape = MakeShape(64, 3);
    RandomSequence sequence(shape, ManyPages(), num_rows);
    for (const AttentionMode mode : {AttentionMode::kAccurate, AttentionMode::kFast}) {
      const std::vector<float> one = Attended(shape, sequence, 1, mode);
      EXPECT_EQ(Attended(shape, sequence, 2, mode), one);
      EXPECT_EQ(Attended(shape, sequence, 5, mode), one);
    }
  }
}

TEST_P(AttentionTest, BitsDoNotDependOnOtherSequences) {
  const AttentionShape shape = MakeShape(64, 2);
  RandomSequence a(shape, ManyPages(), 1, /*seed=*/1);
  RandomSequence b(shape, MixedPages(), 4, /*seed=*/2);
  RandomSequence c(shape, {}, 33, /*seed=*/3);
  RandomSequence d(shape, MixedPages(), 0, /*seed=*/4);
  RandomSequence e(shape, {{2, 2, 100}}, 1, /*seed=*/5);
  RandomSequence* const all[] = {&a, &b, &c, &d, &e};
  for (const AttentionMode mode : {AttentionMode::kAccurate, AttentionMode::kFast}) {
    std::vector<std::vector<float>> alone;
    for (RandomSequence* sequence : all) alone.push_back(Attended(shape, *sequence, 1, mode));
    // The rows of all sequences behind one another.
    std::vector<AttentionSequence> batch;
    std::vector<const KvPageView*> pages;
    std::vector<float> q, k_new, v_new;
    int64_t num_rows = 0;
    for (RandomSequence* sequence : all) {
      batch.push_back(sequence->sequence(num_rows));
      pages.push_back(sequence->pages());
      num_rows += batch.back().num_rows;
      q.insert(q.end(), sequence->q().begin(), sequence->q().end());
      k_new.insert(k_new.end(), sequence->k_new().begin(), sequence->k_new().end());
      v_new.insert(v_new.end(), sequence->v_new().begin(), sequence->v_new().end());
    }
    std::vector<float> out(q.size(), NAN);
    AttentionScratch scratch;
    RunAttention(PlanOf(shape, batch, 2, mode),
                 {pages, q.data(), k_new.data(), v_new.data(), out.data()}, scratch);
    auto begin = out.begin();
    for (size_t i = 0; i < std::size(all); ++i) {
      const auto end = begin + std::ssize(alone[i]);
      EXPECT_EQ(std::vector<float>(begin, end), alone[i]) << i;
      begin = end;
    }
  }
}

// A plan is used for every block, and its memory for other batches: pages and rows are what the
// operands say, and nothing of an earlier batch is left.
TEST_P(AttentionTest, APlanServesManyBlocksAndIsMadeAnew) {
  const AttentionShape shape = MakeShape(64, 2);
  AttentionPlan plan;
  AttentionScratch scratch;
  for (const int64_t num_rows : {1, 20, 2}) {
    RandomSequence first(shape, num_rows == 1 ? ManyPages() : MixedPages(), num_rows, /*seed=*/1);
    RandomSequence second(shape, num_rows == 1 ? ManyPages() : MixedPages(), num_rows, /*seed=*/2);
    const AttentionSequence planned = first.sequence();
    PlanAttention(shape, {&planned, 1}, 1, AttentionMode::kAccurate, plan);
    for (RandomSequence* block : {&first, &second}) {
      const std::vector<float> expected = Attended(shape, *block, 1);
      std::fill(block->out().begin(), block->out().end(), NAN);
      RunAttention(plan, block->operands(), scratch);
      EXPECT_EQ(block->out(), expected);
    }
  }
}

TEST(AttentionDeviceTest, ADeviceWithoutCodeIsRefused) {
  if (CudaVersionText() != "none") GTEST_SKIP() << "this build has CUDA";
  const AttentionShape shape = MakeShape(64, 2);
  RandomSequence sequence(shape, MixedPages(), 1);
  const AttentionSequence only = sequence.sequence();
  AttentionOperands operands = sequence.operands();
  operands.device = {Device::kCuda, 1};
  AttentionScratch scratch;
  testing_support::ExpectError<Unsupported>(
      [&] {
        RunAttention(PlanOf(shape, {&only, 1}, 1), operands, scratch);
      },
      {"[cuda:1] attention: found a program built without code for this device", "device cpu"});
}

// With queries that 16 bits hold exactly, and values that are not packed, nothing is rounded more
// than in the accurate mode: the error stays below that mode's bound.
TEST_P(AttentionTest, FastModeRoundsQueriesOnly) {
  for (const int bits : {8, 4, 2}) {
    const AttentionShape shape = MakeShape(128, 3);
    RandomSequence sequence(shape, {{bits, 16}, {bits, 16, 77}}, 1);
    std::vector<float> rounded = sequence.q();
    std::vector<int16_t> integers(rounded.size());
    for (size_t first = 0; first < rounded.size(); first += 128) {
      const float factor =
          internal::ref::QuantizeToIntegers(rounded.data() + first, 128, integers.data() + first);
      for (size_t i = first; i < first + 128; ++i) {
        rounded[i] = factor * static_cast<float>(integers[i]);
      }
    }
    sequence.q() = rounded;
    sequence.AttendByOracle();
    const std::vector<float> expected = sequence.out();
    const float tolerance = Tolerance(shape, sequence);
    ASSERT_NO_FATAL_FAILURE(
        ExpectNear(Attended(shape, sequence, 1, AttentionMode::kFast), expected, tolerance));
  }
}

// What docs/numerics.md says: over 8,192 tokens the error of the fast mode, relative to the root
// mean square of the output, stays below what rounding to f16 costs, 2^-11.
TEST_P(AttentionTest, FastModeErrsLessThanHalfPrecision) {
  for (const int bits : {8, 4, 2}) {
    for (const QuantAxis axis : {QuantAxis::kToken, QuantAxis::kChannel}) {
      const AttentionShape shape = MakeShape(128, 2, 1);
      RandomSequence sequence(shape, std::vector<PageSpec>(64, {bits, bits, 128, 128, axis}), 1);
      sequence.AttendByOracle();
      const std::vector<float> expected = sequence.out();
      const std::vector<float> fast = Attended(shape, sequence, 1, AttentionMode::kFast);
      double squares = 0.0;
      double error_squares = 0.0;
      for (size_t i = 0; i < fast.size(); ++i) {
        const double error = double{fast[i]} - expected[i];
        squares += double{expected[i]} * expected[i];
        error_squares += error * error;
      }
      EXPECT_LE(std::sqrt(error_squares / squares), 0x1p-11) << bits;
    }
  }
}

// The modes differ where packed pages are decoded, and only there.
TEST_P(AttentionTest, ModesDifferInDecodeOfPackedPagesOnly) {
  const auto same = [](const AttentionShape& shape, PageSpec page, int64_t num_rows) {
    RandomSequence sequence(shape, {page}, num_rows);
    return Attended(shape, sequence, 1) == Attended(shape, sequence, 1, AttentionMode::kFast);
  };
  for (const int64_t heads : {1, 2, 7}) {
    const AttentionShape shape = MakeShape(128, heads);
    EXPECT_FALSE(same(shape, {4, 16}, 1));
    EXPECT_FALSE(same(shape, {16, 4}, 1));
    EXPECT_FALSE(same(shape, {4, 16, 128, 128, QuantAxis::kChannel}, 1));
    EXPECT_TRUE(same(shape, {16, 16}, 1));
    EXPECT_TRUE(same(shape, {4, 4}, internal::kMaxDecodeTokens + 1));
  }
  EXPECT_TRUE(same(MakeShape(24, 2), {4, 4}, 1));  // Rows of 12 bytes.
}

// The scratch is bounded by the chunk and the threads: it must not grow with the stored tokens but
// for the partial results of decode, a few kilobytes per run of pages.
TEST_P(AttentionTest, ScratchDoesNotGrowWithStoredTokens) {
  const AttentionShape shape = MakeShape(64, 2);
  RandomSequence small(shape, {{4, 4}}, 64);
  RandomSequence large(shape, ManyPages(), 64);
  const AttentionSequence small_sequence = small.sequence();
  const AttentionSequence large_sequence = large.sequence();
  EXPECT_EQ(PlanOf(shape, {&small_sequence, 1}, 1).scratch_bytes,
            PlanOf(shape, {&large_sequence, 1}, 1).scratch_bytes);
}

}  // namespace
}  // namespace pmkvq
