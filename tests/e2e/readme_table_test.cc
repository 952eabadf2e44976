// README's table of what loads: each name in it has a sample, a small model or vocabulary of that
// kind, which is loaded and computed with; and each name that the program knows is in the table.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <map>
#include <numbers>
#include <set>
#include <sstream>

#include "pmkvq/base/error.h"
#include "pmkvq/io/gguf/gguf_config.h"
#include "pmkvq/io/model_config.h"
#include "pmkvq/tensor/weight_format.h"
#include "pmkvq/text/chat_template.h"
#include "pmkvq/text/split_patterns.h"
#include "pmkvq/text/tokenizer.h"
#include "support/fp8_model.h"
#include "support/fused_model.h"
#include "support/gguf_model.h"
#include "support/gguf_vocabulary.h"
#include "support/run_program.h"
#include "support/small_tokenizer.h"
#include "support/tokenizer_vectors.h"

namespace pmkvq {
namespace {

using namespace testing_support;

constexpr char kTokenizers[] = PMKVQ_SOURCE_DIR "/tests/golden/tokenizers/";

// A row's first cell, and a name in backquotes of its second.
using Name = std::pair<std::string, std::string>;
using Names = std::set<Name>;

std::vector<std::string> Cells(const std::string& row) {
  std::vector<std::string> cells;
  std::istringstream line(row);
  for (std::string cell; std::getline(line, cell, '|');) {
    const size_t begin = cell.find_first_not_of(' ');
    const size_t end = cell.find_last_not_of(' ');
    cells.push_back(begin == std::string::npos ? "" : cell.substr(begin, end - begin + 1));
  }
  return cells;
}

Names NamesOfReadme() {
  Names names;
  std::istringstream readme(ReadFile(PMKVQ_SOURCE_DIR "/README.md"));
  std::string line;
  while (std::getline(readme, line) && !line.starts_with("| what it is | names |")) {
  }
  std::getline(readme, line);  // |---|
  while (std::getline(readme, line) && line.starts_with("|")) {
    const std::vector<std::string> cells = Cells(line);
    EXPECT_GE(cells.size(), 3u) << line;
    if (cells.size() < 3) continue;
    const std::vector<std::string> parts = SplitAt(cells[2], "`");
    EXPECT_GT(parts.size(), 1u) << "no name: " << line;
    for (size_t i = 1; i < parts.size(); i += 2) {
      EXPECT_TRUE(names.emplace(cells[1], parts[i]).second) << "twice: " << parts[i];
    }
  }
  return names;
}

// --- Samples of models. ---

TinyModel Tiny(const std::string& architecture) {
  TinyModel tiny;
  tiny.architecture = architecture;
  tiny.qkv_bias = architecture == "Qwen2ForCausalLM";
  tiny.qk_norm = architecture == "Qwen3ForCausalLM";
  if (architecture == "MixtralForCausalLM") tiny = TinyModels().at("mixtral_f32");
  if (architecture == "Qwen3MoeForCausalLM") tiny = TinyModels().at("qwen3_moe_normalized_f32");
  if (architecture == "Gemma3ForCausalLM") tiny = TinyModels().at("gemma3_f32");
  if (architecture == "DeepseekV2ForCausalLM") tiny = TinyModels().at("deepseek2_f32");
  if (architecture == "DeepseekV3ForCausalLM") tiny = TinyModels().at("deepseek3_bf16");
  return tiny;
}

constexpr int kNumTokens = 40;

// Logits by the program against a reference in double of the same weights. They are compared as a
// whole, which tells a wrong graph, order of rows, type or scale from rounding to q8 groups: 2^-8
// of a group's largest weight, some 1e-5 of the squares. Exact comparisons are in the unit tests.
void ExpectLogits(const std::string& model, const TinyModel& tiny, const TinyWeights& weights) {
  const TempFolder folder;
  const std::vector<int32_t> tokens = RandomTokens(tiny.vocab, kNumTokens, 3);
  std::string ids;
  for (const int32_t token : tokens) ids += (ids.empty() ? "" : ",") + std::to_string(token);
  const std::string out = folder.File("logits.safetensors");
  const ProgramResult result =
      RunProgram({"logits", "--model", model, "--prompt-ids", ids, "--out", out});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const SafetensorsFile file = SafetensorsFile::Open(out);
  const TensorView& logits = file.Get("logits", DType::kF32, {kNumTokens, tiny.vocab});
  const std::vector<double> expected = TinyModelOracle(tiny, weights).Logits(tokens);
  ASSERT_EQ(static_cast<size_t>(logits.num_elements()), expected.size());
  double squares = 0;
  double error_squares = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    squares += expected[i] * expected[i];
    error_squares += std::pow(double{logits.As<float>()[i]} - expected[i], 2);
  }
  EXPECT_LT(error_squares, squares * 1e-3);
}

// A folder; `more` is a member of its config.json.
void ExpectFolder(const TinyModel& tiny, const std::string& more = "") {
  const TempFolder folder;
  const TinyWeights weights = MakeTinyWeights(tiny);
  WriteTinyModel(tiny, weights, folder);
  if (!more.empty()) {
    std::string config = TinyConfigJson(tiny);
    folder.Write("config.json", config.insert(1, more + ","));
  }
  ExpectLogits(folder.path(), tiny, weights);
}

void ExpectPhi3() {
  const TempFolder folder;
  const TinyModel tiny = Tiny("Phi3ForCausalLM");
  const TinyWeights weights = MakeTinyWeights(tiny);
  WriteTinyModel(tiny, FusedAsPhi3(tiny, weights), folder);
  ExpectLogits(folder.path(), tiny, weights);
}

void ExpectFp8(bool by_row, const std::string& quantization) {
  const Fp8Model made(by_row);
  const TempFolder folder;
  made.WriteFp8(folder, quantization);
  ExpectLogits(folder.path(), made.tiny, made.plain);
}

void ExpectGgufArchitecture(const std::string& architecture) {
  const TempFolder folder;
  const TinyModel tiny = Tiny(architecture);
  const TinyWeights weights = MakeTinyWeights(tiny);
  ExpectLogits(folder.Write("m.gguf", GgufOf(tiny, weights).Bytes()), tiny, weights);
}

void ExpectGgufType(GgufTensorType type) {
  TinyModel tiny = Tiny("LlamaForCausalLM");
  tiny.hidden = 256;
  tiny.inner = 512;
  tiny.layers = 1;
  tiny.heads = 8;
  tiny.kv_heads = 4;
  tiny.head_dim = 32;
  TinyWeights weights = MakeTinyWeights(tiny);
  const TempFolder folder;
  const std::string path = folder.Write("m.gguf", RandomGgufOf(tiny, type, weights).Bytes());
  ExpectLogits(path, tiny, weights);
}

// --- RoPE: frequencies by the published formulas. ---

std::vector<double> PlainFrequencies(const TinyModel& tiny) {
  std::vector<double> frequencies;
  for (int64_t i = 0; i < tiny.head_dim / 2; ++i) {
    frequencies.push_back(
        std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(tiny.head_dim)));
  }
  return frequencies;
}

void ExpectLinear() {
  TinyModel tiny;
  tiny.frequencies = PlainFrequencies(tiny);
  for (double& frequency : tiny.frequencies) frequency /= 4;
  ExpectFolder(tiny, R"("rope_scaling": {"rope_type": "linear", "factor": 4.0})");
}

// Long waves are stretched by the factor, short ones stay, and between them it is mixed.
void ExpectLlama3() {
  TinyModel tiny;
  tiny.frequencies = PlainFrequencies(tiny);
  for (double& frequency : tiny.frequencies) {
    const double turns = 256 * frequency / (2 * std::numbers::pi);  // In the original context.
    const double share = std::clamp((turns - 1) / (4 - 1), 0.0, 1.0);
    frequency *= share + (1 - share) / 8;
  }
  ExpectFolder(tiny,
               R"("rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0,
                  "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                  "original_max_position_embeddings": 256})");
}

void ExpectYarn() {
  TinyModel tiny;
  tiny.frequencies = PlainFrequencies(tiny);
  const double dim = static_cast<double>(tiny.head_dim);
  const auto pair_of = [&](double turns) {  // The pair that turns so often in 256 positions.
    return dim * std::log(256 / (turns * 2 * std::numbers::pi)) / (2 * std::log(10000.0));
  };
  const double low = std::max(std::floor(pair_of(32)), 0.0);
  const double high = std::min(std::ceil(pair_of(1)), dim - 1);
  for (size_t i = 0; i < tiny.frequencies.size(); ++i) {
    const double share = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    tiny.frequencies[i] *= 1 - share + share / 4;
  }
  tiny.rope_factor = 0.1 * std::log(4.0) + 1;
  ExpectFolder(tiny, R"("rope_scaling": {"rope_type": "yarn", "factor": 4.0,
                        "original_max_position_embeddings": 256})");
}

void ExpectRopeFreqs() {
  TinyModel tiny;
  tiny.frequencies = PlainFrequencies(tiny);
  std::string factors;
  for (size_t i = 0; i < tiny.frequencies.size(); ++i) {
    const auto factor = static_cast<float>(1 + i % 3);
    tiny.frequencies[i] /= double{factor};
    AppendBytes(factors, factor);
  }
  const TinyWeights weights = MakeTinyWeights(tiny);
  const TempFolder folder;
  GgufWriter writer = GgufOf(tiny, weights);
  writer.Tensor("rope_freqs.weight", {tiny.frequencies.size()}, GgufTensorType::kF32, factors);
  ExpectLogits(folder.Write("m.gguf", writer.Bytes()), tiny, weights);
}

// --- Samples of text. ---

// The same ids and back again.
void ExpectIds(const std::string& model, const TokenizerVector& vector,
               const std::string& decoded) {
  const ProgramResult ids = RunProgram({"tokenize", "--model", model, "--no-special", vector.text});
  ASSERT_EQ(ids.exit_code, 0) << ids.err;
  std::string expected;
  for (const int32_t id : vector.ids) {
    expected += (expected.empty() ? "" : " ") + std::to_string(id);
  }
  EXPECT_EQ(ids.out, expected + "\n");
  EXPECT_EQ(RunProgram({"tokenize", "--model", model, "--decode"}, ids.out).out, decoded);
}

// The vector with most tokens: letters of several scripts, emoji, numbers, code.
void ExpectVector(const std::string& model, const std::string& folder) {
  TokenizerVector longest;
  for (TokenizerVector& each :
       LoadTokenizerVectors(folder + "vectors.inp", folder + "vectors.out")) {
    if (each.ids.size() > longest.ids.size()) longest = std::move(each);
  }
  ASSERT_GT(longest.ids.size(), 50u);
  ExpectIds(model, longest, longest.text);
}

void ExpectGgufVocabulary(const std::string& kind) {
  GgufWriter writer;
  writer.Text("general.architecture", "llama");
  const bool is_pieces = kind == "llama";
  if (is_pieces) {
    AddPieces(writer, std::string(kTokenizers) + "mistral-v1/tokenizer.model");
  } else {
    AddByteLevelVocabulary(writer, std::string(kTokenizers) + "tokenizer.json", "qwen2");
  }
  const TempFolder folder;
  ExpectVector(folder.Write("vocab.gguf", writer.Bytes()), is_pieces ? "mistral-v1/" : "");
}

// The words of a text are whole tokens, so they are found where the pattern cuts there.
void ExpectSplitPattern(const std::string& pre) {
  const TempFolder folder;
  SmallTokenizer small;
  small.tokens = {"in", "Ġin"};
  small.merges = R"(["i n", "Ġ in"])";
  folder.Write("tokenizer.json", small.Json());
  GgufWriter writer;
  writer.Text("general.architecture", "llama");
  AddByteLevelVocabulary(writer, folder.File("tokenizer.json"), pre);
  const auto tokenizer = Tokenizer::Load(folder.Write("vocab.gguf", writer.Bytes()));
  const std::string text = "in in 12 我's\n in";
  const std::vector<int32_t> ids = tokenizer->Encode(text, false);
  EXPECT_EQ(tokenizer->Decode(ids), text);
  EXPECT_EQ(ids.front(), 256);
  EXPECT_EQ(ids.back(), 257);
}

void ExpectTemplate(const std::string& file) {
  const TempFolder folder;
  const std::string text = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}";
  std::string model = folder.path();
  if (file == "chat_template.jinja") {
    folder.Write(file, text);
  } else if (file == "tokenizer_config.json") {
    folder.Write(file, R"({"chat_template": ")" + text + R"("})");
  } else {
    model = folder.Write("m.gguf", GgufWriter().Text(file, text).Bytes());
  }
  const ChatTemplate loaded = LoadChatTemplate(model);
  EXPECT_EQ(loaded.Render({{"user", "Hi"}}, false).text, "[user]Hi");
}

// --- What the program knows, and its samples. ---

using Samples = std::map<Name, std::function<void()>>;

constexpr char kConfig[] = "`architectures` of `config.json`";
constexpr char kSafetensors[] = "safetensors, used as stored";
constexpr char kQuantization[] = "`quantization_config`, converted at load";
constexpr char kGgufArchitecture[] = "GGUF, `general.architecture`";
constexpr char kGgufStored[] = "GGUF tensors, used as stored";
constexpr char kGgufBlocks[] = "GGUF tensors, multiplied as integers";
constexpr char kRope[] = "RoPE";
constexpr char kWindows[] = "sliding windows";
constexpr char kTokenizerFile[] = "tokenizer files";
constexpr char kGgufTokenizer[] = "GGUF, `tokenizer.ggml.model`";
constexpr char kPre[] = "GGUF, `tokenizer.ggml.pre`";
constexpr char kTemplate[] = "chat templates (Jinja)";

// "a, b or c" behind `mark` in the error of `action`.
template <class Action>
std::vector<std::string> KnownNames(Action action, const std::string& mark) {
  std::string message;
  try {
    action();
  } catch (const Unsupported& error) {
    message = error.what();
  }
  const size_t at = message.find(mark);
  EXPECT_NE(at, std::string::npos) << message;
  if (at == std::string::npos) return {};
  std::string list = message.substr(at + mark.size());
  list = list.substr(0, list.find_first_of(");:"));
  const size_t last = list.rfind(" or ");
  if (last != std::string::npos) list.replace(last, 4, ", ");
  return SplitAt(list, ", ");
}

ModelConfig Parse(const std::string& member) {
  std::string config = TinyConfigJson(TinyModel());
  config.insert(1, member + ",");
  return ParseModelConfig(JsonValue::Parse(config, "config.json"));
}

std::string KindOf(const GgufTensorLayout& layout) {
  return IsBlockFormat(WeightFormatNamed(layout.name).value()) ? kGgufBlocks : kGgufStored;
}

Names KnownToTheProgram() {
  Names names;
  const auto add = [&](const char* kind, const std::vector<std::string>& found) {
    EXPECT_GE(found.size(), 2u) << kind;
    for (const std::string& name : found) names.emplace(kind, name);
  };
  add(kConfig,
      KnownNames(
          [] { ParseModelConfig(JsonValue::Parse(R"({"architectures": ["No"]})", "config.json")); },
          "expected one of "));
  add(kQuantization, KnownNames([] { Parse(R"("quantization_config": {"quant_method": "no"})"); },
                                "(quant_method "));
  add(kRope, KnownNames([] { Parse(R"("rope_scaling": {"rope_type": "no"})"); }, "expected "));
  const auto open = [](const GgufWriter& writer) {
    const std::string bytes = writer.Bytes();
    const auto* begin = reinterpret_cast<const std::byte*>(bytes.data());
    return GgufSet::FromMemory("m.gguf", {begin, begin + bytes.size()});
  };
  add(kGgufArchitecture,
      KnownNames([&] { GgufArchitecture(open(GgufWriter().Text("general.architecture", "no"))); },
                 "expected one of "));
  const TempFolder folder;
  const auto load = [&](const GgufWriter& writer) {
    Tokenizer::Load(folder.Write("m.gguf", writer.Bytes()));
  };
  add(kGgufTokenizer,
      KnownNames([&] { load(GgufWriter().Text("tokenizer.ggml.model", "no")); }, "expected "));
  add(kPre, SplitAt(SplitPatternNames(), ", "));
  for (const GgufTensorLayout& layout : kGgufTensorLayouts) {
    names.emplace(KindOf(layout), layout.name);
  }
  for (const WeightLayout& layout : kWeightLayouts) {
    if (layout.block_values == 1) names.emplace(kSafetensors, layout.name);
  }
  return names;
}

Samples AllSamples() {
  Samples samples;
  for (const char* name : {"DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "Gemma3ForCausalLM",
                           "LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM",
                           "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"}) {
    samples[{kConfig, name}] = [=] { ExpectFolder(Tiny(name)); };
  }
  samples[{kConfig, "Phi3ForCausalLM"}] = ExpectPhi3;
  for (const auto& [name, dtype] : std::map<std::string, DType>{
           {"F32", DType::kF32}, {"F16", DType::kF16}, {"BF16", DType::kBF16}}) {
    samples[{kSafetensors, name}] = [type = dtype] { ExpectFolder({.dtype = type}); };
  }
  samples[{kQuantization, "fp8"}] = [] {
    ExpectFp8(false, R"({"quant_method": "fp8", "weight_block_size": [24, 24]})");
  };
  samples[{kQuantization, "fbgemm_fp8"}] = [] {
    ExpectFp8(true, R"({"quant_method": "fbgemm_fp8"})");
  };
  samples[{kQuantization, "compressed-tensors"}] = [] {
    ExpectFp8(true, R"({"quant_method": "compressed-tensors", "config_groups": {"group_0":
                       {"weights": {"type": "float", "num_bits": 8, "strategy": "channel"}}}})");
  };
  for (const auto& [name, architecture] :
       std::map<std::string, std::string>{{"deepseek2", "DeepseekV2ForCausalLM"},
                                          {"llama", "LlamaForCausalLM"},
                                          {"qwen2", "Qwen2ForCausalLM"},
                                          {"qwen3", "Qwen3ForCausalLM"},
                                          {"qwen3moe", "Qwen3MoeForCausalLM"}}) {
    samples[{kGgufArchitecture, name}] = [graph = architecture] { ExpectGgufArchitecture(graph); };
  }
  for (size_t i = 0; i < kNumGgufTensorTypes; ++i) {
    const GgufTensorLayout& layout = kGgufTensorLayouts[i];
    samples[{KindOf(layout), std::string(layout.name)}] = [=] {
      ExpectGgufType(static_cast<GgufTensorType>(i));
    };
  }
  samples[{kRope, "default"}] = [] {
    TinyModel tiny;
    tiny.frequencies = PlainFrequencies(tiny);
    ExpectFolder(tiny, R"("rope_parameters": {"rope_type": "default", "rope_theta": 10000.0})");
  };
  samples[{kRope, "linear"}] = ExpectLinear;
  samples[{kRope, "llama3"}] = ExpectLlama3;
  samples[{kRope, "yarn"}] = ExpectYarn;
  samples[{kRope, "rope_freqs"}] = ExpectRopeFreqs;
  samples[{kWindows, "sliding_window"}] = [] {
    ExpectFolder({.architecture = "MistralForCausalLM", .window = 9});
  };
  samples[{kWindows, "max_window_layers"}] = [] {
    TinyModel tiny = Tiny("Qwen2ForCausalLM");
    tiny.window = 9;
    tiny.full_layers = 2;
    ExpectFolder(tiny);
  };
  samples[{kWindows, "layer_types"}] = [] {
    TinyModel tiny = Tiny("Qwen3ForCausalLM");
    tiny.window = 9;
    tiny.full_layers = 1;
    ExpectFolder(tiny, R"("layer_types": ["full_attention", "sliding_attention",
                          "sliding_attention"])");
  };
  samples[{kWindows, "sliding_window_pattern"}] = [] {
    TinyModel tiny = Tiny("Gemma3ForCausalLM");
    tiny.layers = 3;
    tiny.window_pattern = 2;
    ExpectFolder(tiny);
  };
  const std::string folder = kTokenizers;
  samples[{kTokenizerFile, "tokenizer.json"}] = [=] { ExpectVector(folder, ""); };
  samples[{kTokenizerFile, "byte_fallback"}] = [=] {
    ExpectVector(folder + "mistral-v1/tokenizer.json", "mistral-v1/");
  };
  samples[{kTokenizerFile, "tokenizer.model"}] = [=] {
    ExpectVector(folder + "mistral-v1/tokenizer.model", "mistral-v1/");
  };
  for (const char* kind : {"gpt2", "llama"}) {
    samples[{kGgufTokenizer, kind}] = [=] { ExpectGgufVocabulary(kind); };
  }
  for (const std::string& pre : SplitAt(SplitPatternNames(), ", ")) {
    samples[{kPre, pre}] = [=] { ExpectSplitPattern(pre); };
  }
  for (const char* file :
       {"chat_template.jinja", "tokenizer_config.json", "tokenizer.chat_template"}) {
    samples[{kTemplate, file}] = [=] { ExpectTemplate(file); };
  }
  return samples;
}

TEST(ReadmeTable, EveryNameHasASampleThatLoads) {
  const Samples samples = AllSamples();
  const Names names = NamesOfReadme();
  EXPECT_GT(names.size(), 50u);
  for (const Name& name : names) {
    SCOPED_TRACE(name.first + ": " + name.second);
    const auto sample = samples.find(name);
    if (sample == samples.end()) {
      ADD_FAILURE() << "no sample";
    } else {
      sample->second();
    }
  }
}

TEST(ReadmeTable, EverythingThatLoadsIsInIt) {
  const Names names = NamesOfReadme();
  for (const auto& [kind, name] : KnownToTheProgram()) {
    EXPECT_TRUE(names.contains({kind, name})) << kind << ": " << name;
  }
  for (const auto& [name, sample] : AllSamples()) {
    EXPECT_TRUE(names.contains(name)) << name.first << ": " << name.second;
  }
}

}  // namespace
}  // namespace pmkvq
