// pmkvq damage as its user runs it.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "pmkvq/io/json.h"
#include "pmkvq/io/safetensors.h"
#include "support/run_program.h"

namespace pmkvq {
namespace {

using testing_support::ProgramResult;
using testing_support::RunProgram;
using testing_support::TempFolder;

// Two blocks, one KV head, 70 tokens of 32 channels.
std::string WriteStates(const TempFolder& folder) {
  std::map<std::string, TensorView> views;
  std::map<std::string, Tensor> tensors;
  for (const char* name : {"k", "v"}) {
    Tensor tensor(DType::kF32, {2, 1, 70, 32});
    for (int64_t i = 0; i < tensor.num_elements(); ++i) {
      tensor.As<float>()[i] = static_cast<float>((i * 37 + name[0]) % 101) / 50.0f - 1.0f;
    }
    views.emplace(name, tensors.emplace(name, std::move(tensor)).first->second.view());
  }
  WriteSafetensors(folder.File("states.safetensors"), views);
  return folder.File("states.safetensors");
}

TEST(DamageCommand, WritesWhatIsReadAndItsBytes) {
  const TempFolder folder;
  const std::string out = folder.File("read.safetensors");
  const ProgramResult result =
      RunProgram({"damage", "--kv", "kivi:residual=32", "--in", WriteStates(folder), "--out", out,
                  "--prompt-len", "40", "--kv-dtype", "f32", "--json", "-"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const JsonValue json = JsonValue::Parse(result.out, "stdout");
  EXPECT_EQ(json.At("kv").AsString(), "kivi:residual=32");
  EXPECT_EQ(json.At("prompt_len").AsInt(), 40);
  EXPECT_EQ(json.At("kept_share").AsDouble(), 1.0);
  ASSERT_EQ(json.At("bytes").size(), 70u);
  // One token: two rows of 32 floats in each of two blocks.
  EXPECT_EQ(json.At("bytes").At(0).AsInt(), 2 * 2 * 32 * 4);
  EXPECT_LT(json.At("bytes").At(69).AsInt(), json.At("peak_bytes").AsInt());

  const SafetensorsFile in = SafetensorsFile::Open(folder.File("states.safetensors"));
  const SafetensorsFile read = SafetensorsFile::Open(out);
  const Shape shape = {2, 1, 70, 32};
  const float* const given = in.Get("k", DType::kF32, shape).As<float>();
  const float* const k = read.Get("k_read", DType::kF32, shape).As<float>();
  read.Get("v_read", DType::kF32, shape);
  const auto* const kept = read.Get("kept", DType::kU8, {2, 1, 70}).As<uint8_t>();
  EXPECT_TRUE(std::all_of(kept, kept + 140, [](uint8_t one) { return one == 1; }));
  EXPECT_NE(k[0], given[0]);
  EXPECT_TRUE(std::equal(k + 64 * 32, k + 70 * 32, given + 64 * 32)) << "the newest";
}

TEST(DamageCommand, SaysWhatIsWrongInOneLine) {
  const TempFolder folder;
  const std::string in = WriteStates(folder);
  const std::string out = folder.File("read.safetensors");
  const auto expect = [&](const std::vector<std::string>& args, int exit_code,
                          const std::vector<std::string>& parts) {
    std::vector<std::string> all = {"damage", "--out", out};
    all.insert(all.end(), args.begin(), args.end());
    const ProgramResult result = RunProgram(all);
    EXPECT_EQ(result.exit_code, exit_code) << result.err;
    for (const std::string& part : parts) {
      EXPECT_NE(result.err.find(part), std::string::npos) << result.err << part;
    }
    if (exit_code == 1) {
      EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    }
    EXPECT_FALSE(std::filesystem::exists(out));
  };
  expect({"--in", in}, 2, {"--kv"});
  expect({"--in", in, "--kv", "kivy"}, 2, {"kivy"});
  expect({"--in", in, "--kv", "kivi", "--prompt-len", "x"}, 2, {"--prompt-len"});
  expect({"--in", folder.File("none"), "--kv", "kivi"}, 1, {folder.File("none")});
  expect({"--in", in, "--kv", "mikv"}, 1, {in, "'q'", "found none", "--kv mikv needs queries"});
  expect({"--in", in, "--kv", "rotatekv"}, 1, {in, "'keys_before_rope'", "found none"});
  expect({"--in", in, "--kv", "kivi", "--prompt-len", "71"}, 1,
         {"--prompt-len", "found 71", "70 tokens"});
}

}  // namespace
}  // namespace pmkvq
