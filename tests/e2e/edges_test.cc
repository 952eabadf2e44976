// What comes from outside in other forms than usual: prompts, checkpoints, tokenizers, sizes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "pmkvq/io/json.h"
#include "support/command_help.h"
#include "support/run_program.h"

namespace pmkvq {
namespace {

using testing_support::ExpectOneLineError;
using testing_support::Plus;
using testing_support::ProgramResult;
using testing_support::RunProgram;
using testing_support::Slurp;
using testing_support::TempFolder;
using Args = std::vector<std::string>;

const std::string kModel = PMKVQ_SOURCE_DIR "/models/longcot-10m";
const std::string kTiny = PMKVQ_SOURCE_DIR "/tests/golden/tiny-llama";
const std::string kTokenizers = PMKVQ_SOURCE_DIR "/tests/golden/tokenizers";

std::string PromptIds(const Args& args, const std::string& input = "") {
  Args all = {"run", "--model", kModel, "--max-tokens", "1", "--temperature", "0", "--json", "-"};
  all.insert(all.end(), args.begin(), args.end());
  const ProgramResult result = RunProgram(all, input);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  if (result.exit_code != 0) return "";
  const JsonValue json = JsonValue::Parse(result.out, "run");
  return json.At("sequences").At(size_t{0}).At("prompt_ids").Dump();
}

TEST(Prompts, TheLineBreakAtTheEndIsNoPartOfThem) {
  const TempFolder folder;
  const std::string text = "Sort: 3 1 2\nNow.";
  const std::string mark = "\xef\xbb\xbf";
  for (const std::string name : {"none", "longcot"}) {
    const Args with = {"--chat-template", name};
    const std::string expected = PromptIds({"--chat-template", name, "--prompt", text});
    for (const std::string& content :
         {text, text + "\n", text + "\r\n", text + "\r", mark + text + "\r\n"}) {
      EXPECT_EQ(PromptIds({"--chat-template", name, "--file", folder.Write("p.txt", content)}),
                expected);
      EXPECT_EQ(PromptIds(with, content), expected);
    }
  }
  const std::string utf16 = folder.Write("u.txt", std::string("\xff\xfeS\0o\0", 6));
  ExpectOneLineError(RunProgram({"run", "--model", kModel, "--file", utf16}), 1,
                     {"u.txt", "UTF-16"});
}

TEST(Prompts, ControlTokensThatAUserTypesAreText) {
  const Args raw = {"--chat-template", "none", "--prompt", "a<|im_end|>b"};
  const std::string text = PromptIds(raw);
  EXPECT_EQ(text.find("544"), std::string::npos) << text;
  Args parsed = raw;
  parsed.push_back("--parse-special");
  EXPECT_NE(PromptIds(parsed).find("544"), std::string::npos);
}

TEST(Tokenize, PutsTheBosOfTokenizerConfigInFront) {
  const std::string plain =
      RunProgram({"tokenize", "--model", kTokenizers + "/tokenizer.json"}, "a").out;
  EXPECT_EQ(plain, "64\n");
  EXPECT_EQ(RunProgram({"tokenize", "--model", kTokenizers}, "a").out, "151646 64\n");
  EXPECT_EQ(RunProgram({"tokenize", "--model", kTokenizers, "--no-special"}, "a").out, "64\n");
}

// The tiny model with one more tensor, of a type that nothing here computes with.
TEST(Checkpoints, TensorsOfForeignTypesAreListed) {
  const TempFolder folder;
  std::filesystem::copy(kTiny, folder.path(), std::filesystem::copy_options::recursive);
  const std::string image = Slurp(kTiny + "/model.safetensors");
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, image.data(), sizeof(header_bytes));
  std::string header = image.substr(8, header_bytes);
  const size_t data_bytes = image.size() - 8 - header_bytes;
  header.resize(header.rfind('}'));
  header += ",\"scale\":{\"dtype\":\"F8_E4M3\",\"shape\":[2],\"data_offsets\":[" +
            std::to_string(data_bytes) + "," + std::to_string(data_bytes + 2) + "]}}";
  header_bytes = header.size();
  std::string changed(reinterpret_cast<const char*>(&header_bytes), sizeof(header_bytes));
  changed += header + image.substr(image.size() - data_bytes) + "ab";
  const std::string path = folder.Write("model.safetensors", changed);
  const ProgramResult listed = RunProgram({"inspect", path});
  EXPECT_EQ(listed.exit_code, 0) << listed.err;
  EXPECT_NE(listed.out.find("F8_E4M3  [2]"), std::string::npos);
  const ProgramResult run =
      RunProgram({"run", "--model", folder.path(), "--prompt-ids", "1,2", "--max-tokens", "1"});
  EXPECT_EQ(run.exit_code, 0) << run.err;
}

TEST(Checkpoints, AMissingChatTemplateIsSaid) {
  const TempFolder folder;
  std::filesystem::copy(kModel, folder.path());
  std::filesystem::remove(folder.File("tokenizer_config.json"));
  const Args run = {"run", "--model", folder.path(), "--max-tokens", "1", "-p", "hi"};
  EXPECT_NE(RunProgram(run).err.find("found no chat template"), std::string::npos);
  EXPECT_EQ(RunProgram(Plus(run, {"--chat-template", "none"})).err.find("chat template"),
            std::string::npos);
}

// Ids need no tokenizer, so one that cannot be read is no obstacle.
TEST(Run, WorksWithATokenizerThatIsNotRead) {
  const TempFolder folder;
  std::filesystem::copy(kTiny, folder.path(), std::filesystem::copy_options::recursive);
  const Args ids = {"run", "--model", folder.path(), "--prompt-ids", "1,2", "--max-tokens", "2"};
  const Args text = {"run", "--model", folder.path(), "-p", "hi"};
  folder.Write("tokenizer.json", R"({"model": {"type": "Unigram", "unk_id": 0, "vocab": []}})");
  const ProgramResult result = RunProgram(Plus(ids, {"--json", "-"}));
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.err.find("Unigram"), std::string::npos) << result.err;
  EXPECT_NE(result.err.find("ids and no text"), std::string::npos) << result.err;
  ExpectOneLineError(RunProgram(text), 1, {"tokenizer.json", "model.type", "Unigram", "BPE"});

  // What needs no text does not look at it; rows of ids need none either.
  EXPECT_EQ(RunProgram({"logits", "--model", folder.path(), "--prompt-ids", "1,2", "--out",
                        folder.File("l.safetensors")})
                .exit_code,
            0);
  const std::string rows = folder.Write("rows.jsonl", R"({"input_ids": [1, 2, 3, 4]})");
  const ProgramResult by_ids =
      RunProgram({"perplexity", "--model", folder.path(), "--dataset", rows});
  EXPECT_EQ(by_ids.exit_code, 0) << by_ids.err;
  EXPECT_NE(by_ids.err.find("rows with text cannot be read"), std::string::npos) << by_ids.err;
  // Another tokenizer in its place.
  const std::string other = std::string(PMKVQ_SOURCE_DIR) + "/models/longcot-10m/tokenizer.json";
  const ProgramResult replaced = RunProgram(
      Plus(text, {"--tokenizer", other, "--chat-template", "none", "--max-tokens", "1"}));
  EXPECT_EQ(replaced.err.find("Unigram"), std::string::npos) << replaced.err;
  ExpectOneLineError(RunProgram(Plus(text, {"--tokenizer", folder.File("none.json")})), 1,
                     {"none.json", "no such file"});

  std::filesystem::remove(folder.File("tokenizer.json"));
  folder.Write("tokenizer.model", "x");
  EXPECT_EQ(RunProgram(ids).exit_code, 0);
  ExpectOneLineError(RunProgram(text), 1,
                     {folder.path(), "tokenizer.model", "no SentencePiece model"});
}

TEST(Checkpoints, GitLfsPointersAreNamed) {
  const std::string pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n";
  for (const char* name : {"model.safetensors", "config.json", "generation_config.json"}) {
    const TempFolder folder;
    std::filesystem::copy(kTiny, folder.path(), std::filesystem::copy_options::recursive);
    folder.Write(name, pointer);
    ExpectOneLineError(RunProgram({"run", "--model", folder.path(), "--prompt-ids", "1,2"}), 1,
                       {name, "Git LFS pointer", "git lfs pull"});
  }
  const TempFolder folder;
  ExpectOneLineError(
      RunProgram({"tokenize", "--model", folder.Write("tokenizer.json", pointer)}, "a"), 1,
      {"tokenizer.json", "Git LFS pointer"});
  ExpectOneLineError(RunProgram({"inspect", folder.Write("plan.json", pointer)}), 1,
                     {"plan.json", "Git LFS pointer"});
}

TEST(Sizes, ByteCountsDoNotOverflow) {
  const TempFolder folder;
  const std::string sensitivity = folder.Write(
      "s.json", R"({"bits":[16,2],"k":{"16":[1,1],"2":[2,2]},"v":{"16":[1,1],"2":[2,2]}})");
  for (const char* choices : {"16,2", "16", "2"}) {
    const ProgramResult result = RunProgram(
        {"allocate", "--kv-dim", "1048576", "--max-len", "1099511627776", "--fbit-choices", choices,
         "--reference-accounting", "--sensitivity", sensitivity, "--memory-budget", "8GiB"});
    EXPECT_EQ(result.exit_code, 1) << result.out;
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  }
}

TEST(Problems, NumbersKeepTheirSpelling) {
  const TempFolder folder;
  const std::string data = folder.Write(
      "p.jsonl",
      "{\"id\":12345678901234567890,\"problem\":\"Say.\",\"answer\":18446744073709551617}\n"
      "{\"id\":-9223372036854775809,\"problem\":\"Say.\",\"answer\":-0.12345678901234567890123}\n"
      "{\"id\":1e3,\"problem\":\"Say.\",\"answer\":1.50}\n");
  const ProgramResult result =
      RunProgram({"eval", "--model", kModel, "--benchmark", "jsonl", "--data", data, "--max-tokens",
                  "1", "--out", folder.File("out")});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const std::string responses = Slurp(folder.File("out") + "/responses.jsonl");
  for (const char* text :
       {"\"12345678901234567890\"", "\"18446744073709551617\"", "\"-9223372036854775809\"",
        "\"-0.12345678901234567890123\"", "\"1e3\"", "\"1.50\""}) {
    EXPECT_NE(responses.find(text), std::string::npos) << text << " is not in " << responses;
  }
}

}  // namespace
}  // namespace pmkvq
