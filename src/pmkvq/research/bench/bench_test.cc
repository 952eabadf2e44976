// The parts of the benchmarks whose results are known: statistics, reports, shapes, made-up
// content.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <set>

#include "pmkvq/base/error.h"
#include "pmkvq/model/model_size.h"
#include "pmkvq/research/bench/bench_model.h"
#include "pmkvq/research/bench/measurements.h"
#include "pmkvq/research/bench/report.h"
#include "pmkvq/research/bench/shapes.h"
#include "pmkvq/research/bench/synthetic.h"
#include "pmkvq/research/bench/timed_store.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

TEST(Measurements, QuantilesByHand) {
  Measurements values;
  for (const double value : {5.0, 1.0, 4.0, 2.0, 3.0}) values.Add(value);
  EXPECT_EQ(values.Median(), 3.0);
  EXPECT_DOUBLE_EQ(values.Quantile(0.1), 1.4);
  EXPECT_DOUBLE_EQ(values.Quantile(0.9), 4.6);
  EXPECT_EQ(values.Max(), 5.0);
  values.Add(6.0);
  EXPECT_EQ(values.Median(), 3.5);
}

TEST(BenchReport, ASingleRowStandsAtTheTopToo) {
  BenchReport report;
  report.facts.Add("threads", int64_t{2}, "threads").AddText("only text", "for people");
  BenchTable table{"rows", "a title", {BenchFields().Add("ms", 1.5, "ms").Add("hidden", 2.0)}};
  report.tables.push_back(table);
  EXPECT_EQ(ToJson(report),
            R"({"threads":2,"ms":1.5,"hidden":2.0,"rows":[{"ms":1.5,"hidden":2.0}]})");
  EXPECT_EQ(FormatReport(report),
            "threads               2\nonly text             for people\n\na title\n  ms\n1.50\n");
  report.tables[0].rows.push_back(table.rows[0]);
  EXPECT_EQ(ToJson(report),
            R"({"threads":2,"rows":[{"ms":1.5,"hidden":2.0},{"ms":1.5,"hidden":2.0}]})");
}

TEST(Shapes, SizesByHand) {
  const ModelConfig shape = NamedShape("qwen2-7b", 2);
  EXPECT_EQ(shape.num_layers, 2);
  // q and o 3584 x 3584, k and v 512 x 3584, three MLP matrices 18944 x 3584.
  EXPECT_EQ(BlockParameters(shape), 2 * 12845056 + 2 * 1835008 + 3 * int64_t{67895296});
  EXPECT_EQ(SyntheticModelBytes(shape),
            2 * (2 * BlockParameters(shape) + 2 * int64_t{1024} * 3584));
  std::string names;
  for (const BlockMatrix& matrix : BlockMatrices(shape)) names += matrix.name + " ";
  EXPECT_EQ(names, "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj ");
  for (const std::string& name : ShapeNames()) {
    const ModelConfig whole = NamedShape(name, 0);
    EXPECT_EQ(whole.num_heads % whole.num_kv_heads, 0) << name;
    EXPECT_GT(whole.num_layers, 2) << name;
  }
  testing_support::ExpectError<InvalidInput>([] { NamedShape("x", 0); }, {"--shape", "'x'"});
}

TEST(Shapes, ExpertsByHand) {
  const ModelConfig qwen = *NamedExpertShape("qwen3-30b-a3b", 2);
  // q and o 4096 x 2048, k and v 512 x 2048, a router of 128 rows; 128 experts of three matrices.
  const int64_t rest = 2 * (2 * 8388608 + 2 * 1048576 + 128 * 2048) + 1024 * 2048;
  const int64_t expert = 3 * int64_t{768} * 2048;
  EXPECT_EQ(SyntheticModelBytes(qwen), 2 * (rest + 1024 * 2048 + 2 * 128 * expert));
  EXPECT_DOUBLE_EQ(WeightsOfStep(qwen, 1), static_cast<double>(rest + 2 * 8 * expert));
  // Of two rows: 8 and 8, of which half an expert is the same one.
  EXPECT_DOUBLE_EQ(WeightsOfStep(qwen, 2), static_cast<double>(rest) + 2 * 15.5 * expert);
  const ModelConfig lite = *NamedExpertShape("deepseek-v2-lite", 0);
  EXPECT_EQ(lite.num_layers, 27);
  // The published 15.7 and 2.4 thousand million less the vocabulary of 102,400, that is 0.42.
  EXPECT_NEAR(static_cast<double>(NumMatrixWeights(lite)) / 1e9, 15.3, 0.05);
  EXPECT_NEAR(static_cast<double>(NumActiveWeights(lite)) / 1e9, 2.25, 0.05);
  const ModelConfig dense = NamedShape("qwen2-7b", 2);
  EXPECT_DOUBLE_EQ(WeightsOfStep(dense, 7),
                   2.0 * static_cast<double>(BlockParameters(dense)) + 1024.0 * 3584);
  EXPECT_FALSE(NamedExpertShape("qwen2-7b", 2).has_value());
}

TEST(Synthetic, WeightsAreOfOneScaleAndDiffer) {
  const Tensor matrix = SyntheticMatrix(300, 1024, 1, 2);
  std::set<uint16_t> different;
  double sum = 0;
  double squares = 0;
  for (int64_t i = 0; i < matrix.num_elements(); ++i) {
    const BF16 value = matrix.As<BF16>()[i];
    different.insert(value.bits);
    sum += ToFloat(value);
    squares += static_cast<double>(ToFloat(value)) * ToFloat(value);
  }
  const auto count = static_cast<double>(matrix.num_elements());
  EXPECT_EQ(different.size(), 1024u) << "sign, four exponents, 128 mantissas";
  EXPECT_LT(std::abs(sum / count), 1e-3);
  // A row times a vector of unit variance keeps its scale.
  EXPECT_GT(std::sqrt(squares / count * 1024.0), 0.5);
  EXPECT_LT(std::sqrt(squares / count * 1024.0), 3.0);
  const Tensor again = SyntheticMatrix(300, 1024, 1, 1);
  EXPECT_EQ(std::memcmp(matrix.view().data, again.view().data, matrix.view().num_bytes()), 0);
}

// A model of made-up weights over a made-up cache computes finite logits, and time is counted.
TEST(Synthetic, AModelDecodesOverAFilledCache) {
  const std::shared_ptr<const Model> model =
      SyntheticModel(NamedShape("longcot", 2), WeightMode::kAsStored, 1);
  PackedKvCache cache(UniformCacheConfig(UniformOf(model->kv_geometry()), 4, 700, 1, 1));
  const SequenceId seq = cache.Open().value();
  SyntheticRows rows(1);
  FillCache(cache, UniformOf(model->kv_geometry()), seq, 650, rows);
  EXPECT_EQ(cache.NumTokens(seq), 650);
  // 649 tokens behind the sink: five closed pages and the open one, K and V of two blocks.
  EXPECT_EQ(cache.SequenceStats(seq).pages, (PagesPerWidth{4, 0, 20, 0}));
  TimedStore store(cache);
  ASSERT_EQ(store.Reserve(seq, 1), ReserveResult::kReserved);
  const int32_t token = 7;
  const ForwardChunk chunk{seq, {&token, 1}, 650, ForwardChunk::Logits::kLast};
  ForwardWorkspace workspace;
  ThrowIfFailed(model->Forward({&chunk, 1}, store, workspace, 1));
  EXPECT_GT(store.TakeAttentionSeconds(), 0.0);
  EXPECT_EQ(store.TakeAttentionSeconds(), 0.0);
  EXPECT_EQ(store.NumTokens(seq), 651);
  for (int64_t i = 0; i < kBenchVocabulary; ++i) {
    ASSERT_TRUE(std::isfinite(workspace.logits[static_cast<size_t>(i)]));
  }
}

// A model from somewhere else than the options' shape is what is measured.
TEST(BenchModel, RowsAreOfThatModel) {
  const std::shared_ptr<const Model> model =
      SyntheticModel(NamedShape("longcot", 3), WeightMode::kQ8, 1);
  BenchOptions options;
  options.depths = {0, 130};
  options.bits = {4};
  options.batches = {1};
  options.repeat = 1;
  for (const BenchReport& report :
       {BenchDecodeOf(model, options), BenchPrefillOf(model, options, 20, 16)}) {
    const std::string json = ToJson(report);
    EXPECT_NE(json.find("\"layers\":3"), std::string::npos) << json;
    EXPECT_NE(json.find("\"weights\":\"q8\""), std::string::npos) << json;
    EXPECT_NE(json.find("\"processor_ms\":"), std::string::npos) << json;
    EXPECT_EQ(report.tables.at(0).rows.size(), 2u);
  }
}

}  // namespace
}  // namespace pmkvq
