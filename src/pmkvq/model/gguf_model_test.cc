// Models in GGUF files: the same function as the checkpoint that they were made of.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <span>

#include "pmkvq/base/error.h"
#include "pmkvq/io/gguf/gguf_header.h"
#include "pmkvq/model/blocks/attention_gqa.h"
#include "pmkvq/model/blocks/mlp_dense.h"
#include "pmkvq/model/blocks/mlp_moe.h"
#include "pmkvq/model/model.h"
#include "support/dense_kv_store.h"
#include "support/expect_error.h"
#include "support/gguf_model.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using namespace testing_support;

constexpr const char* kGolden = PMKVQ_SOURCE_DIR "/tests/golden/";

// Logits of all tokens, in chunks of `step`.
std::vector<float> LogitsOf(const Model& model, const std::vector<int32_t>& tokens, size_t step) {
  const KvGeometry geometry = model.kv_geometry();
  DenseKvStore store(geometry.block(0).is_latent() ? geometry : UniformOf(geometry));
  ForwardWorkspace workspace;
  const SequenceId seq = store.Open().value();
  std::vector<float> logits;
  for (size_t begin = 0; begin < tokens.size(); begin += step) {
    const size_t count = std::min(step, tokens.size() - begin);
    EXPECT_EQ(store.Reserve(seq, static_cast<int64_t>(count)), ReserveResult::kReserved);
    const ForwardChunk chunk{seq, std::span(tokens).subspan(begin, count),
                             static_cast<int64_t>(begin), ForwardChunk::Logits::kAll};
    ThrowIfFailed(model.Forward({&chunk, 1}, store, workspace, 1));
    logits.insert(logits.end(), workspace.logits.begin(),
                  workspace.logits.begin() + workspace.num_logit_rows * model.config().vocab_size);
  }
  return logits;
}

std::shared_ptr<const Model> LoadGguf(const GgufWriter& writer, const ModelOptions& options = {}) {
  const TempFolder folder;
  return Model::Load(folder.Write("model.gguf", writer.Bytes()), options);
}

const AttentionGqaWeights& AttentionOf(const Model& model, int64_t layer) {
  return dynamic_cast<const AttentionGqa&>(model.attention(layer)).weights();
}

// Every architecture and variant, permuted rows and biases too: bit for bit, token by token and in
// chunks that BLAS multiplies.
TEST(GgufModel, LogitsAreThoseOfTheFolder) {
  for (const auto& [name, tiny] : TinyModels()) {
    // Not read from GGUF: Gemma, and rope keys in halves.
    if (tiny.is_gemma || !tiny.rope_in_pairs) continue;
    SCOPED_TRACE(name);
    const TinyWeights weights = MakeTinyWeights(tiny);
    const TempFolder folder;
    WriteTinyModel(tiny, weights, folder);
    const std::shared_ptr<const Model> expected = Model::Load(folder.path());
    const std::shared_ptr<const Model> model = LoadGguf(GgufOf(tiny, weights));
    EXPECT_EQ(model->conversion().num_tensors, 0);
    EXPECT_EQ(model->config().tie_word_embeddings, tiny.tied);
    EXPECT_EQ(NameOf(model->embedding().format), NameOf(tiny.dtype)) << "stays as stored";
    const std::vector<int32_t> tokens = RandomTokens(tiny.vocab, 90, 3);
    for (const size_t step : {1u, 90u}) {
      EXPECT_EQ(LogitsOf(*model, tokens, step), LogitsOf(*expected, tokens, step)) << step;
    }
    EXPECT_NE(model->checkpoint().Identity(), expected->checkpoint().Identity());
  }
}

TEST(GgufModel, GoldenLogitsAreThoseOfTheFolder) {
  const std::shared_ptr<const Model> expected = Model::Load(std::string(kGolden) + "tiny-llama");
  const auto f32 = Model::Load(std::string(kGolden) + "gguf/tiny-llama-f32.gguf");
  const auto q8_0 = Model::Load(std::string(kGolden) + "gguf/tiny-llama-q8_0.gguf");
  const std::vector<int32_t> tokens = RandomTokens(expected->config().vocab_size, 80, 5);
  for (const size_t step : {1u, 80u}) {
    const std::vector<float> logits = LogitsOf(*expected, tokens, step);
    EXPECT_EQ(LogitsOf(*f32, tokens, step), logits);
    const std::vector<float> rounded = LogitsOf(*q8_0, tokens, step);
    // Half a code of 127 in each weight: a sanity check, the exact one is below.
    double squares = 0;
    double error_squares = 0;
    for (size_t i = 0; i < logits.size(); ++i) {
      squares += std::pow(double{logits[i]}, 2);
      error_squares += std::pow(double{logits[i]} - double{rounded[i]}, 2);
    }
    EXPECT_GT(error_squares, 0);
    EXPECT_LT(error_squares, squares * 1e-3);
  }
  EXPECT_EQ(AttentionOf(*q8_0, 0).q.format, WeightFormat::kQ8_0);
  EXPECT_EQ(q8_0->conversion().num_tensors, 0);
}

TinyModel WideExperts(const std::string& architecture) {
  TinyModel tiny;
  tiny.architecture = architecture;
  tiny.hidden = 256;
  tiny.inner = 256;
  tiny.expert_inner = 256;
  tiny.layers = 2;
  tiny.heads = 8;
  tiny.kv_heads = 4;
  tiny.head_dim = 32;
  tiny.qk_norm = architecture == "Qwen3MoeForCausalLM";
  tiny.experts = 5;
  return tiny;
}

// A value format: products of few rows are those of the decoded weights. 1e-4 as above.
TEST(GgufModel, StoredBlocksOfExpertsAreThoseOfTheDecodedWeights) {
  for (const char* architecture : {"MixtralForCausalLM", "Qwen3MoeForCausalLM"}) {
    const TinyModel tiny = WideExperts(architecture);
    TinyWeights decoded = MakeTinyWeights(tiny);
    const auto model = LoadGguf(RandomGgufOf(tiny, GgufTensorType::kQ8_0, decoded));
    EXPECT_EQ(model->conversion().num_tensors, 0);
    const auto& moe = dynamic_cast<const MlpMoe&>(model->mlp(0)).weights();
    EXPECT_EQ(moe.experts[3].down.format, WeightFormat::kQ8_0);
    EXPECT_EQ(moe.router.format, WeightFormat::kF32);
    const std::vector<int32_t> tokens = RandomTokens(tiny.vocab, 70, 3);
    const std::vector<double> expected = TinyModelOracle(tiny, decoded).Logits(tokens);
    for (const size_t step : {size_t{1}, tokens.size()}) {
      const std::vector<float> logits = LogitsOf(*model, tokens, step);
      for (size_t i = 0; i < logits.size(); ++i) {
        ASSERT_NEAR(double{logits[i]}, expected[i], 1e-4) << step << " " << i;
      }
    }
  }
}

// Files of before April 2024 have a tensor for each expert.
TEST(GgufModel, OldNamesOfExpertsAreTheSameModel) {
  const TinyModel tiny = WideExperts("MixtralForCausalLM");
  for (const GgufTensorType type : {GgufTensorType::kQ4_K, GgufTensorType::kQ6_K}) {
    TinyWeights weights = MakeTinyWeights(tiny);
    const auto stacked = LoadGguf(RandomGgufOf(tiny, type, weights));
    weights = MakeTinyWeights(tiny);
    const auto one_by_one = LoadGguf(RandomGgufOf(tiny, type, weights, /*stacks=*/false));
    const std::vector<int32_t> tokens = RandomTokens(tiny.vocab, 70, 3);
    for (const size_t step : {size_t{1}, tokens.size()}) {
      EXPECT_EQ(LogitsOf(*stacked, tokens, step), LogitsOf(*one_by_one, tokens, step)) << step;
    }
  }
}

class EachType : public testing::TestWithParam<size_t> {
 protected:
  GgufTensorType type() const { return static_cast<GgufTensorType>(GetParam()); }
};

TinyModel WideModel(const std::string& architecture) {
  TinyModel tiny;
  tiny.architecture = architecture;
  tiny.hidden = 256;
  tiny.inner = 512;
  tiny.layers = 1;
  tiny.heads = 8;
  tiny.kv_heads = 4;
  tiny.head_dim = 32;
  tiny.qkv_bias = architecture != "Qwen3ForCausalLM";
  tiny.qk_norm = architecture == "Qwen3ForCausalLM";
  return tiny;
}

double RmsOf(const std::vector<double>& values) {
  double squares = 0;
  for (const double value : values) squares += value * value;
  return std::sqrt(squares / static_cast<double>(values.size()));
}

// Against a reference in double of the decoded weights.
//
// Value formats: sums of up to 512 products of values near 1 times 0.1, in float, through a block:
// 1e-4 of logits near 3 is ten times the error seen.
//
// Block formats round x to codes of max|x| / 127 in groups of 32. Of 32 normal values the largest
// is near 2.1 times their rms, so rounding errs by 2.1 / 127 / sqrt(12) = 0.0048 of it, and a sum
// of such products by as much. What goes down is a product of two such values; of 32 of these the
// largest is near 4.5 times the rms: 0.0102. Errors of products in series are independent: q, k and
// v; o; gate; up; down; the head give sqrt(5 x 0.0048^2 + 0.0102^2) = 0.0148 of the logits. Half as
// much again for what is not normal. So a token alone, chunks of 5, and a prompt of 70 tokens.
TEST_P(EachType, LogitsAreThoseOfTheDecodedWeights) {
  const bool is_block = IsBlockFormat(*WeightFormatNamed(LayoutOf(type()).name));
  for (const char* architecture : {"LlamaForCausalLM", "Qwen2ForCausalLM"}) {
    SCOPED_TRACE(architecture);
    const TinyModel tiny = WideModel(architecture);
    TinyWeights decoded = MakeTinyWeights(tiny);
    const GgufWriter writer = RandomGgufOf(tiny, type(), decoded);
    const std::shared_ptr<const Model> model = LoadGguf(writer, {WeightMode::kAsStored, 2});
    EXPECT_EQ(model->conversion().num_tensors, 0);
    EXPECT_EQ(NameOf(model->embedding().format), LayoutOf(type()).name);
    EXPECT_EQ(NameOf(AttentionOf(*model, 0).q.format), LayoutOf(type()).name);
    const bool is_llama = std::string(architecture) == "LlamaForCausalLM";
    const std::vector<int32_t> tokens = RandomTokens(tiny.vocab, is_llama ? 70 : 6, 3);
    const std::vector<double> expected = TinyModelOracle(tiny, decoded).Logits(tokens);
    for (const size_t step : {size_t{1}, size_t{5}, tokens.size()}) {
      const std::vector<float> logits = LogitsOf(*model, tokens, step);
      ASSERT_EQ(logits.size(), expected.size());
      std::vector<double> errors;
      double worst = 0;
      for (size_t i = 0; i < logits.size(); ++i) {
        errors.push_back(double{logits[i]} - expected[i]);
        worst = std::max(worst, std::abs(errors.back()));
      }
      if (!is_block) {
        EXPECT_LE(worst, 1e-4) << step;
        continue;
      }
      EXPECT_LE(RmsOf(errors), 1.5 * 0.0148 * RmsOf(expected)) << step;
      EXPECT_GT(RmsOf(errors), 1e-5 * RmsOf(expected)) << "x was not rounded";
    }
  }
}

std::string TypeName(const testing::TestParamInfo<size_t>& info) {
  return std::string(kGgufTensorLayouts[info.param].name);
}
INSTANTIATE_TEST_SUITE_P(GgufModel, EachType, testing::Range(size_t{0}, kNumGgufTensorTypes),
                         TypeName);

// --weights q8 leaves blocks that are as small, and quantises the rest.
TEST(GgufModel, Q8LeavesQ8_0AsStored) {
  const TinyModel tiny = WideModel("LlamaForCausalLM");
  TinyWeights weights = MakeTinyWeights(tiny);
  const auto q8_0 =
      LoadGguf(RandomGgufOf(tiny, GgufTensorType::kQ8_0, weights), {WeightMode::kQ8, 1});
  EXPECT_EQ(AttentionOf(*q8_0, 0).q.format, WeightFormat::kQ8_0);
  EXPECT_EQ(q8_0->output_head().format, WeightFormat::kQ8_0);
  const auto bf16 =
      LoadGguf(RandomGgufOf(tiny, GgufTensorType::kBF16, weights), {WeightMode::kQ8, 1});
  EXPECT_EQ(AttentionOf(*bf16, 0).q.format, WeightFormat::kQ8);
  EXPECT_EQ(bf16->embedding().format, WeightFormat::kBF16);
  EXPECT_EQ(bf16->conversion().types, std::vector<std::string>{"BF16"});
}

// Factors in a tensor are those that the config of the folder makes.
TEST(GgufModel, RopeFactorsEqualLlama3Scaling) {
  TinyModel tiny;
  tiny.head_dim = 32;
  tiny.heads = 2;
  const TinyWeights weights = MakeTinyWeights(tiny);
  TempFolder folder;
  WriteTinyModel(tiny, weights, folder);
  std::string config = TinyConfigJson(tiny);
  config.insert(1,
                R"("rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 128},)");
  folder.Write("config.json", config);
  const auto expected = Model::Load(folder.path());
  const std::vector<float>& scaled = expected->rope().frequencies();
  const std::vector<float> plain = LoadGguf(GgufOf(tiny, weights))->rope().frequencies();
  std::string factors;
  for (size_t i = 0; i < scaled.size(); ++i) AppendBytes(factors, plain[i] / scaled[i]);
  const auto model =
      LoadGguf(GgufOf(tiny, weights)
                   .Tensor("rope_freqs.weight", {scaled.size()}, GgufTensorType::kF32, factors));
  EXPECT_NE(scaled, plain);
  for (size_t i = 0; i < scaled.size(); ++i) {
    // Two roundings of division.
    EXPECT_NEAR(model->rope().frequencies()[i], scaled[i], scaled[i] * 0x1p-22);
  }
}

TEST(GgufModel, RefusesOtherTensors) {
  const TinyModel tiny;
  const TinyWeights weights = MakeTinyWeights(tiny);
  const std::string zeros(4 * 32, '\0');
  ExpectError<InvalidInput>(
      [&] {
        LoadGguf(GgufOf(tiny, weights)
                     .Tensor("blk.0.attn_sinks.weight", {32}, GgufTensorType::kF32, zeros));
      },
      {"model.gguf", "tensor 'blk.0.attn_sinks.weight'", "LlamaForCausalLM, 3 blocks"});
  ExpectError<InvalidInput>(
      [&] {
        LoadGguf(GgufOf(tiny, weights)
                     .Tensor("blk.3.attn_norm.weight", {32}, GgufTensorType::kF32, zeros));
      },
      {"tensor 'blk.3.attn_norm.weight'"});
  EXPECT_NO_THROW(LoadGguf(GgufOf(tiny, weights)
                               .Tensor("blk.0.attn_rot_embd", {32}, GgufTensorType::kF32, zeros)
                               .Tensor("other", {32}, GgufTensorType::kF32, zeros)));
  TinyWeights fewer = weights;
  fewer.erase("model.layers.1.mlp.up_proj.weight");
  ExpectError<InvalidInput>([&] { LoadGguf(GgufOf(tiny, fewer)); },
                            {"tensor 'blk.1.ffn_up.weight': found nothing", "[56, 32]"});
  TinyWeights other = weights;
  other["model.layers.1.mlp.up_proj.weight"] = Tensor(DType::kF32, {55, 32});
  ExpectError<InvalidInput>([&] { LoadGguf(GgufOf(tiny, other)); },
                            {"tensor 'blk.1.ffn_up.weight': found F32 [55, 32]", "[56, 32]"});
}

// Broken scales are the error of the request that meets them.
TEST(GgufModel, WeightsThatAreNotFiniteFailTheForward) {
  const TinyModel tiny = WideModel("LlamaForCausalLM");
  TinyWeights weights = MakeTinyWeights(tiny);
  std::string bytes = RandomGgufOf(tiny, GgufTensorType::kQ4_K, weights).Bytes();
  const F16 infinity = ToF16(INFINITY);
  const auto file = std::as_bytes(std::span(bytes));
  for (const GgufTensor& tensor : ParseGgufHeader("model.gguf", file).tensors) {
    if (tensor.name != "blk.0.ffn_up.weight") continue;
    const auto last_block = tensor.data + tensor.num_bytes - 144;
    std::memcpy(bytes.data() + (last_block - file.data()), &infinity, sizeof(infinity));
  }
  const TempFolder folder;
  const std::shared_ptr<const Model> model = Model::Load(folder.Write("model.gguf", bytes));
  const std::vector<float> logits = LogitsOf(*model, {1}, 1);
  const std::optional<KvFailure> failure = model->FailureOfLogits(logits.data(), 0);
  ASSERT_TRUE(failure.has_value());
  EXPECT_NE(failure->what.find("finite"), std::string::npos) << failure->what;
}

// The name of the folder of one file, split files, and files aligned to less than their elements.
TEST(GgufModel, LoadsFromAFolder) {
  const TinyModel tiny;
  const TinyWeights weights = MakeTinyWeights(tiny);
  GgufWriter writer = GgufOf(tiny, weights);
  const auto expected = LoadGguf(writer);
  const std::vector<int32_t> tokens = RandomTokens(tiny.vocab, 5, 3);
  const TempFolder folder;
  // An odd number of metadata bytes and an alignment of 1: no tensor is aligned.
  for (const char* name : {"", "x", "xy", "xyz"}) {
    GgufWriter unaligned = writer;
    unaligned.alignment = 1;
    unaligned.U32("general.alignment", 1).Text("general.name", name);
    folder.Write("model.gguf", unaligned.Bytes());
    const auto model = Model::Load(folder.path());
    EXPECT_EQ(LogitsOf(*model, tokens, 1), LogitsOf(*expected, tokens, 1));
    EXPECT_EQ(model->checkpoint().Identity(), expected->checkpoint().Identity())
        << "of the weights, not of the file";
  }
}

}  // namespace
}  // namespace pmkvq
