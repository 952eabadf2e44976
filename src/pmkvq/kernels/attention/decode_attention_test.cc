// What of decode attention on a device needs no device: the rule of runs, where tokens lie, and the
// oracle itself, against the oracle of pages in planes.
#include "pmkvq/kernels/attention/decode_attention.h"

#include <gtest/gtest.h>

#include <vector>

#include "pmkvq/kernels/attention/attention.h"
#include "pmkvq/kernels/attention/decode_pages.h"
#include "pmkvq/kernels/attention/decode_runs.h"
#include "pmkvq/kernels/kv_quant/fragment_page.h"

namespace pmkvq {
namespace {

DecodeShape MakeShape(int64_t heads, int64_t kv_heads, int64_t dim) {
  DecodeShape shape;
  shape.num_heads = heads;
  shape.num_kv_heads = kv_heads;
  shape.head_dim = dim;
  shape.scale = 1.0f / std::sqrt(static_cast<float>(dim));
  return shape;
}

TEST(DecodeRuns, ScratchHoldsTheRunsOfAnyLength) {
  int most = 0;
  for (int pages = 0; pages < 5000; ++pages) {
    EXPECT_LE((NumRuns(pages) - 1) * RunPages(pages), pages);
    EXPECT_GE(NumRuns(pages) * RunPages(pages), pages);
    most = std::max(most, NumRuns(pages));
    ASSERT_EQ(MostRuns(pages), most) << pages;
  }
  // A warp keeps its pages of a run in its 32 lanes.
  EXPECT_LE(RunPages(1 << 20) / 4, 32);
}

TEST(DecodeRuns, ScratchHoldsDealtPages) {
  const DecodeShape shape = MakeShape(8, 2, 128);
  DecodeShape in_float = shape;
  in_float.head_dim = 256;
  for (int pages = 1; pages < 300; ++pages) {
    const int most = internal::MostDecodeRuns(shape, pages);
    for (int n = 1; n <= pages; ++n) {
      ASSERT_GE(most, n < internal::kDealtPages ? n : NumRuns(n)) << pages << ", " << n;
    }
    EXPECT_EQ(internal::MostDecodeRuns(in_float, pages), MostRuns(pages));
  }
}

TEST(DecodeSink, TokensGoToPiecesThenTheRestThenPages) {
  const SinkLayout sink{.piece_tokens = 128, .rest_tokens = 5};
  for (const auto& [tokens, in_rest] : std::vector<std::pair<int, int>>{
           {0, 0}, {1, 0}, {128, 0}, {129, 1}, {133, 5}, {134, 5}, {1000, 5}}) {
    EXPECT_EQ(sink.InRest(tokens), in_rest) << tokens;
    EXPECT_EQ(sink.InPages(tokens), tokens - in_rest) << tokens;
  }
}

// Pages of the batch in planes, for ref::Attend.
TEST(DecodeOracle, EqualsTheOracleOfPagesInPlanes) {
  for (const int64_t dim : {64, 128}) {
    const DecodeShape shape = MakeShape(6, 2, dim);
    const RandomDecodeBatch batch(
        shape, {{.num_tokens = 5 * 128 + 7, .bits = {{16, 16}, {8, 4}, {4, 2}, {2, 8}, {4, 16}}}});
    const DecodeOperands operands = batch.operands();
    std::vector<double> got(static_cast<size_t>(shape.num_heads * dim));
    ref::DecodeAttention(shape, operands, got.data());

    std::vector<std::vector<std::byte>> memory;
    std::vector<KvPageView> pages;
    std::vector<PageTokens> tokens;
    for (int64_t p = 0; p < operands.max_pages; ++p) {
      const PageEntry& entry = operands.entries[p];
      const auto side = [&](bool is_values, uint32_t codes, uint32_t metadata, int bits) {
        const FragmentPageShape page{shape.num_kv_heads, dim, is_values};
        memory.emplace_back(static_cast<size_t>(shape.num_kv_heads *
                                                fragment::BlockBytes(bits, static_cast<int>(dim))));
        FragmentsToPlanes(page, bits, operands.arena + size_t{codes} * 256, memory.back().data());
        KvTensorView view;
        view.data = memory.back().data();
        view.bits = bits;
        if (bits != 16) view.metadata = operands.arena + size_t{metadata} * 256;
        return view;
      };
      const PageBits& bits = operands.bits[p];
      pages.push_back({side(false, entry.k, entry.k_metadata, bits.k),
                       side(true, entry.v, entry.v_metadata, bits.v)});
      tokens.push_back({p + 1 == operands.max_pages ? 7 : 128, 128});
    }
    // The oracle wants a row of its own, too: the last stored token's weight is in both. So it is
    // given one that weighs nothing.
    AttentionShape planes;
    planes.num_heads = shape.num_heads;
    planes.num_kv_heads = shape.num_kv_heads;
    planes.head_dim = planes.group = dim;
    planes.scale = shape.scale;
    std::vector<float> q;
    for (const F16 value : batch.q()) q.push_back(ToFloat(value));
    for (int64_t head = 0; head < shape.num_heads; ++head) {
      AttentionSequence sequence{tokens, 1, 0};
      std::vector<float> k_new(static_cast<size_t>(2 * dim));
      const std::vector<float> v_new(static_cast<size_t>(2 * dim));
      for (int64_t d = 0; d < dim; ++d) {
        const float value = q[static_cast<size_t>(head * dim + d)];
        for (int64_t g = 0; g < 2; ++g) k_new[static_cast<size_t>(g * dim + d)] = -100 * value;
      }
      std::vector<float> expected(static_cast<size_t>(shape.num_heads * dim));
      const KvPageView* const first = pages.data();
      ref::Attend(planes, {&sequence, 1},
                  {.pages = {&first, 1},
                   .q = q.data(),
                   .k_new = k_new.data(),
                   .v_new = v_new.data(),
                   .out = expected.data()});
      for (int64_t d = 0; d < dim; ++d) {
        const auto at = static_cast<size_t>(head * dim + d);
        ASSERT_NEAR(got[at], expected[at], 1e-5) << "head " << head << " dim " << d;
      }
    }
  }
}

}  // namespace
}  // namespace pmkvq
