// GGUF files as their user meets them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <span>

#include "pmkvq/io/file.h"
#include "pmkvq/io/gguf/gguf_header.h"
#include "pmkvq/io/json.h"
#include "pmkvq/io/model_config.h"
#include "pmkvq/io/safetensors.h"
#include "support/command_help.h"
#include "support/gguf_model.h"
#include "support/gguf_vocabulary.h"
#include "support/run_program.h"

namespace pmkvq {
namespace {

using testing_support::AddByteLevelVocabulary;
using testing_support::AppendBytes;
using testing_support::ExpectOneLineError;
using testing_support::GgufOf;
using testing_support::GgufWriter;
using testing_support::MakeTinyWeights;
using testing_support::Plus;
using testing_support::ProgramResult;
using testing_support::RandomGgufOf;
using testing_support::RunProgram;
using testing_support::TempFolder;
using testing_support::TinyModel;
using Args = std::vector<std::string>;

const std::string kGolden = PMKVQ_SOURCE_DIR "/tests/golden/";
const std::string kFolder = kGolden + "tiny-llama";
const std::string kLongcot = PMKVQ_SOURCE_DIR "/models/longcot-10m";
const std::string kF32 = kGolden + "gguf/tiny-llama-f32.gguf";
const std::string kQ8_0 = kGolden + "gguf/tiny-llama-q8_0.gguf";

std::string Ids(int count) {
  std::string ids;
  for (int i = 0; i < count; ++i) ids += (i > 0 ? "," : "") + std::to_string(i * 37 % 250);
  return ids;
}

std::string Rows(const TempFolder& folder) {
  std::string rows;
  for (int i = 0; i < 3; ++i) rows += "{\"input_ids\":[" + Ids(300) + "]}\n";
  return folder.Write("rows.jsonl", rows);
}

// A model whose matrices are Q4_K.
std::string WriteQ4K(const TempFolder& folder) {
  TinyModel tiny;
  tiny.vocab = 256;
  tiny.hidden = 256;
  tiny.inner = 256;
  tiny.layers = 1;
  tiny.heads = 8;
  tiny.kv_heads = 4;
  tiny.head_dim = 32;
  auto weights = MakeTinyWeights(tiny);
  return folder.Write("q4_k.gguf", RandomGgufOf(tiny, GgufTensorType::kQ4_K, weights).Bytes());
}

// Blocks of 32 BF16 weights as Q8_0, as llama.cpp rounds them.
std::string ToQ8_0(const TensorView& tensor) {
  std::string data;
  for (int64_t begin = 0; begin < tensor.num_elements(); begin += 32) {
    const BF16* weights = tensor.As<BF16>() + begin;
    float largest = 0;
    for (int i = 0; i < 32; ++i) largest = std::max(largest, std::abs(ToFloat(weights[i])));
    const float scale = largest / 127;
    AppendBytes(data, ToF16(scale));
    for (int i = 0; i < 32; ++i) {
      const float code = scale > 0 ? ToFloat(weights[i]) / scale : 0;
      data += static_cast<char>(std::lround(code));
    }
  }
  return data;
}

// The shipped model with its tokenizer and template: matrices as stored, or as Q8_0.
std::string WriteLongcot(const std::string& path, bool q8_0) {
  const ModelConfig config = LoadModelConfig(kLongcot);
  GgufWriter writer;
  writer.Text("general.architecture", "qwen2");
  const auto number = [&](const char* key, int64_t value) {
    writer.U32(std::string("qwen2.") + key, static_cast<uint32_t>(value));
  };
  number("block_count", config.num_layers);
  number("context_length", config.max_position_embeddings);
  number("embedding_length", config.hidden_size);
  number("feed_forward_length", config.intermediate_size);
  number("attention.head_count", config.num_heads);
  number("attention.head_count_kv", config.num_kv_heads);
  number("attention.key_length", config.head_dim);
  number("attention.value_length", config.head_dim);
  writer.F32("qwen2.attention.layer_norm_rms_epsilon", static_cast<float>(config.rms_norm_eps));
  writer.F32("qwen2.rope.freq_base", static_cast<float>(config.rope_theta));
  AddByteLevelVocabulary(writer, kLongcot + "/tokenizer.json", "qwen2");
  writer.U32("tokenizer.ggml.bos_token_id", static_cast<uint32_t>(config.bos_token_id));
  writer.U32("tokenizer.ggml.eos_token_id", static_cast<uint32_t>(config.eos_token_ids[0]));
  writer.Text(
      "tokenizer.chat_template",
      JsonValue::ParseFile(kLongcot + "/tokenizer_config.json").At("chat_template").AsString());
  for (const char* shard :
       {"/model-00001-of-00002.safetensors", "/model-00002-of-00002.safetensors"}) {
    const SafetensorsFile file = SafetensorsFile::Open(kLongcot + shard);
    for (const auto& [name, tensor] : file.tensors()) {
      const std::string stored = GgufName(CanonicalNameOfHuggingFace(name));
      std::vector<uint64_t> sizes(tensor.shape.rbegin(), tensor.shape.rend());
      if (q8_0 && sizes.size() == 2) {
        writer.Tensor(stored, sizes, GgufTensorType::kQ8_0, ToQ8_0(tensor));
      } else {
        writer.Tensor(stored, sizes, GgufTensorType::kBF16,
                      {reinterpret_cast<const char*>(tensor.data), tensor.num_bytes()});
      }
    }
  }
  WriteFileAtomically(path, writer.Bytes());
  return path;
}

std::vector<int64_t> GreedyIds(const std::string& model, const Args& more = {}) {
  const Args run = {"run", "--model",       model, "--prompt-ids", Ids(70), "--max-tokens",
                    "40",  "--temperature", "0",   "--json",       "-"};
  const ProgramResult result = RunProgram(Plus(run, more));
  EXPECT_EQ(result.exit_code, 0) << result.err;
  if (result.exit_code != 0) return {};
  const JsonValue json = JsonValue::Parse(result.out, "run");
  return json.At("sequences").At(size_t{0}).At("output_ids").AsIntArray();
}

TEST(Gguf, GreedyOutputIsThatOfTheFolder) {
  const std::vector<int64_t> expected = GreedyIds(kFolder);
  ASSERT_GE(expected.size(), 1u);
  EXPECT_EQ(GreedyIds(kF32), expected);
  EXPECT_EQ(GreedyIds(kF32, {"--weights", "q8"}), GreedyIds(kFolder, {"--weights", "q8"}));
  EXPECT_FALSE(GreedyIds(kQ8_0).empty());
  const TempFolder folder;
  std::filesystem::copy_file(kF32, folder.File("model.gguf"));
  EXPECT_EQ(GreedyIds(folder.path()), expected) << "the folder of one file";
}

// Text in, text out: tokenizer, template, ends of an answer and weights of the file.
TEST(Gguf, AnswersOfAWholeModelAreThoseOfTheFolder) {
  const TempFolder folder;
  const auto answer = [](const std::string& model) {
    const ProgramResult result =
        RunProgram({"run", "--model", model, "--temperature", "0",
                    "Multiply 472 by 58 with column sums of digit products. What is the product?"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_NE(result.err.find("[stop]"), std::string::npos) << result.err;
    return result.out;
  };
  const std::string expected = answer(kLongcot);
  EXPECT_NE(expected.find("27376"), std::string::npos) << expected;
  EXPECT_EQ(answer(WriteLongcot(folder.File("bf16.gguf"), false)), expected);
  const std::string rounded = answer(WriteLongcot(folder.File("q8_0.gguf"), true));
  EXPECT_NE(rounded.find("27376"), std::string::npos) << rounded;
}

TEST(Gguf, LogitsAreThoseOfTheFolder) {
  const TempFolder folder;
  std::vector<std::string> files;
  for (const std::string& model : {kFolder, kF32}) {
    const std::string out = folder.File(std::to_string(files.size()) + ".safetensors");
    const ProgramResult result = RunProgram(
        {"logits", "--model", model, "--prompt-ids", Ids(100), "--out", out, "--threads", "2"});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    files.push_back(ReadFile(out));
  }
  EXPECT_EQ(files[0], files[1]);
}

TEST(Gguf, EveryCommandTakesThem) {
  const TempFolder folder;
  const std::string rows = Rows(folder);
  const std::string plan = folder.File("plan.json");
  const Args data = {"--dataset", rows, "--n-samples", "2", "--seq-len", "128"};
  const std::string q4_k = WriteQ4K(folder);
  for (const std::string& model : {kQ8_0, q4_k}) {
    SCOPED_TRACE(model);
    const auto run = [&](const Args& args) {
      const ProgramResult result = RunProgram(args);
      EXPECT_EQ(result.exit_code, 0) << result.err;
      return result;
    };
    run({"perplexity", "--model", model, "--dataset", rows, "--kv", "static-4"});
    run(Plus({"sensitivity", "--model", model, "--json", folder.File("s.json")}, data));
    run({"allocate", "--model", model, "--sensitivity", folder.File("s.json"), "--memory-budget",
         "1MiB", "--max-len", "256", "--json", folder.File("a.json")});
    run(Plus({"calibrate", "--model", model, "--plan", plan, "--memory-budget", "1MiB", "--max-len",
              "256"},
             data));
    run({"inspect", model, "--kv", "pm-kvq", "--plan", plan});
    EXPECT_FALSE(GreedyIds(model, {"--kv", "pm-kvq", "--plan", plan}).empty());
  }
  // The plan is of the last model.
  ExpectOneLineError(RunProgram({"run", "--model", kQ8_0, "--prompt-ids", "1,2", "--kv", "pm-kvq",
                                 "--plan", plan}),
                     1, {plan, "model.identity", "another one"});
}

TEST(Gguf, BlocksStayAsStored) {
  const TempFolder folder;
  const std::string q4_k = WriteQ4K(folder);
  const ProgramResult run =
      RunProgram({"run", "--model", q4_k, "--prompt-ids", "1,2", "--max-tokens", "1"});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(run.err.find("became"), std::string::npos) << run.err;

  const ProgramResult inspect = RunProgram({"inspect", q4_k, "--json"});
  ASSERT_EQ(inspect.exit_code, 0) << inspect.err;
  const JsonValue types = JsonValue::Parse(inspect.out, "inspect").At("tensor_types");
  EXPECT_EQ(types.At("Q4_K").At("tensors").AsInt(), 9);
  EXPECT_EQ(types.At("Q4_K").At("bytes").AsInt() % 144, 0);
  EXPECT_GE(types.At("F32").At("tensors").AsInt(), 3);
  const ProgramResult table = RunProgram({"inspect", q4_k});
  EXPECT_NE(table.out.find("Q4_K"), std::string::npos) << table.out;
  const ProgramResult blocks = RunProgram({"inspect", kGolden + "gguf/blocks.gguf"});
  EXPECT_EQ(blocks.exit_code, 0) << blocks.err;
  EXPECT_NE(blocks.out.find("mxfp4.weight"), std::string::npos) << blocks.out;
}

// A question about bytes is answered by the header: weights that no model could be made of do not
// matter.
TEST(Gguf, BytesOfACacheNeedNoWeights) {
  const TempFolder folder;
  const std::string model = WriteQ4K(folder);
  const Args ask = {"inspect", model, "--kv", "static-4", "--max-len", "256", "--json", "-"};
  const ProgramResult whole = RunProgram(ask);
  ASSERT_EQ(whole.exit_code, 0) << whole.err;
  std::string bytes = ReadFile(model);
  const F16 infinity = ToF16(INFINITY);
  const auto file = std::as_bytes(std::span(bytes));
  for (const GgufTensor& tensor : ParseGgufHeader(model, file).tensors) {
    if (tensor.name != "blk.0.ffn_up.weight") continue;
    std::memcpy(bytes.data() + (tensor.data - file.data()), &infinity, sizeof(infinity));
  }
  folder.Write("q4_k.gguf", bytes);
  const ProgramResult run = RunProgram({"run", "--model", model, "--prompt-ids", "1,2"});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_NE(run.err.find("logits are not finite"), std::string::npos) << run.err;
  const ProgramResult spoilt = RunProgram(ask);
  EXPECT_EQ(spoilt.exit_code, 0) << spoilt.err;
  EXPECT_EQ(spoilt.out, whole.out);
  EXPECT_EQ(whole.err + spoilt.err, "");
}

// With a fault in the tokenizer a file still holds a model: the golden one, that is.
TEST(Gguf, ATokenizerThatIsRefusedLeavesTokenIds) {
  const TinyModel tiny;
  GgufWriter writer = GgufOf(tiny, MakeTinyWeights(tiny));
  writer.Text("tokenizer.ggml.model", "gpt2").Text("tokenizer.ggml.pre", "no-such-pre");
  writer.Texts("tokenizer.ggml.tokens", {"a", "b"}).Texts("tokenizer.ggml.merges", {});
  const TempFolder folder;
  const std::string model = folder.Write("m.gguf", writer.Bytes());
  const ProgramResult ids =
      RunProgram({"run", "--model", model, "--prompt-ids", "1,2", "--max-tokens", "2"});
  EXPECT_EQ(ids.exit_code, 0) << ids.err;
  EXPECT_NE(ids.err.find("no-such-pre"), std::string::npos) << ids.err;
  ExpectOneLineError(RunProgram({"run", "--model", model, "text"}), 1,
                     {"tokenizer.ggml.pre", "no-such-pre", "--tokenizer"});
  // Another tokenizer in its place; its ids are beyond this model's 48.
  const std::string other = PMKVQ_SOURCE_DIR "/models/longcot-10m";
  const ProgramResult text = RunProgram({"run", "--model", model, "--tokenizer", other,
                                         "--chat-template", "none", "--max-tokens", "1", "3"});
  EXPECT_EQ(text.err.find("no-such-pre"), std::string::npos) << text.err;
  const ProgramResult inspect = RunProgram({"inspect", model});
  EXPECT_EQ(inspect.exit_code, 0) << inspect.err;
  EXPECT_NE(inspect.out.find("not supported"), std::string::npos) << inspect.out;
  const Args bench = {"bench", "calibrate", "--n-samples", "1", "--seq-len", "8", "--model", model};
  const std::string rows = folder.Write("ids.jsonl", "{\"input_ids\":[1,2,3,4,5,6,7,8]}\n");
  EXPECT_EQ(RunProgram(Plus(bench, {"--dataset", rows})).exit_code, 0);
  const std::string texts = folder.Write("texts.jsonl", "{\"text\":\"abab\"}\n");
  ExpectOneLineError(RunProgram(Plus(bench, {"--dataset", texts})), 1, {"no-such-pre"});
}

TEST(Gguf, MalformedFilesAreErrorsOfOneLine) {
  const JsonValue cases = JsonValue::ParseFile(kGolden + "gguf/malformed/cases.json");
  int count = 0;
  cases.ForEachMember([&](std::string_view name, const JsonValue&) {
    const std::string path = kGolden + "gguf/malformed/" + std::string(name);
    if (!FileExists(path)) return;  // The one that a unit test makes.
    ++count;
    SCOPED_TRACE(path);
    for (const Args& args : {Args{"inspect", path}, Args{"run", "--model", path, "text"},
                             Args{"tokenize", "--model", path, "text"}}) {
      const ProgramResult result = RunProgram(args);
      EXPECT_EQ(result.exit_code, 1);
      EXPECT_NE(result.err.find(path), std::string::npos) << result.err;
      EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
      EXPECT_LT(result.peak_rss_kib, 64 * 1024);
    }
  });
  EXPECT_EQ(count, 30);
}

}  // namespace
}  // namespace pmkvq
