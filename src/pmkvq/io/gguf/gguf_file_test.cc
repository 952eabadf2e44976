#include "pmkvq/io/gguf/gguf_file.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <span>

#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "support/expect_error.h"
#include "support/gguf_writer.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::AppendBytes;
using testing_support::AppendText;
using testing_support::ExpectError;
using testing_support::GgufWriter;
using testing_support::TempFolder;

constexpr const char* kGolden = PMKVQ_SOURCE_DIR "/tests/golden/gguf/";

std::string Zeros(size_t count) { return std::string(count, '\0'); }

GgufHeader Parse(const std::string& bytes) {
  return ParseGgufHeader("f.gguf", std::as_bytes(std::span(bytes)));
}

TEST(GgufFile, ReadsPairsByValue) {
  const TempFolder folder;
  GgufWriter writer;
  writer.Text("name", "a model").U32("u32", 7).U64("u64", 8).I32("i32", -9).F32("f32", 0.5f);
  writer.Bool("yes", true).Texts("words", {"", "two", "\xff"});
  writer.Array<int32_t>("numbers", GgufType::kI32, {1, -2, 3});
  writer.Array<float>("scores", GgufType::kF32, {0.25f, std::nanf("")});
  writer.Tensor("t", {4, 2}, GgufTensorType::kF32, Zeros(32));
  const GgufSet set = GgufSet::Open(folder.Write("a.gguf", writer.Bytes()));

  EXPECT_EQ(set.num_files(), 1);
  EXPECT_EQ(set.Find("name").AsString(), "a model");
  EXPECT_EQ(set.Find("u32").AsInt(0, 10), 7);
  EXPECT_EQ(set.Find("u64").AsInt(0, 10), 8);
  EXPECT_EQ(set.Find("i32").AsInt(-10, 10), -9);
  EXPECT_EQ(set.Find("u32").AsDouble(), 7.0);
  EXPECT_EQ(set.Find("f32").AsDouble(), 0.5);
  EXPECT_TRUE(set.Find("yes").AsBool());
  EXPECT_TRUE(set.Find("no").IsMissing());
  EXPECT_FALSE(set.Find("no").BoolOr(false));
  std::vector<std::string> words;
  set.Find("words").ForEachString(
      [&](uint64_t, std::string_view word) { words.emplace_back(word); });
  EXPECT_EQ(words, (std::vector<std::string>{"", "two", "\xff"}));
  EXPECT_EQ(set.Find("numbers").size(), 3u);
  EXPECT_EQ(set.Find("numbers").IntAt(1, -5, 5), -2);
  EXPECT_EQ(set.Find("scores").FloatAt(0), 0.25f);
  EXPECT_TRUE(std::isnan(set.Find("scores").FloatAt(1)));

  ExpectError<InvalidInput>([&] { set.Find("u32").AsInt(0, 6); }, {"u32: found 7", "0 to 6"});
  ExpectError<InvalidInput>([&] { set.Find("name").AsInt(0, 6); }, {"found \"a model\""});
  ExpectError<InvalidInput>([&] { set.Find("numbers").IntAt(1, 0, 5); }, {"numbers[1]: found -2"});
  ExpectError<InvalidInput>([&] { set.Find("numbers").AsString(); },
                            {"an array of 3 x i32", "expected a string"});
  ExpectError<InvalidInput>([&] { set.Find("no").AsDouble(); }, {"no: found nothing"});
  ExpectError<InvalidInput>([&] { set.Find("u32").AsBool(); }, {"expected a bool"});
  ExpectError<InvalidInput>([&] { set.Find("scores").CheckArray(5, "scores"); },
                            {"an array of 2 x f32", "an array of 5 scores"});
}

TEST(GgufFile, FindsTensorsInAnyOrder) {
  GgufWriter writer;
  writer.version = 2;
  writer.Tensor("z", {32, 3}, GgufTensorType::kQ4_0, std::string(54, 'z'));
  writer.Tensor("a", {2, 3, 4}, GgufTensorType::kF16, std::string(48, 'a'));
  const TempFolder folder;
  const GgufSet set = GgufSet::Open(folder.Write("a.gguf", writer.Bytes()));
  ASSERT_EQ(set.tensors().size(), 2u);
  EXPECT_EQ(set.tensors()[0].name, "a");
  EXPECT_EQ(set.FindTensor("b"), nullptr);
  const GgufTensor& a = *set.FindTensor("a");
  EXPECT_EQ(a.cols, 2);
  EXPECT_EQ(a.rows, 12);
  EXPECT_EQ(a.num_bytes, 48u);
  EXPECT_EQ(static_cast<char>(a.data[0]), 'a');
  const GgufTensor& z = *set.FindTensor("z");
  EXPECT_EQ(z.type, GgufTensorType::kQ4_0);
  EXPECT_EQ(z.num_bytes, 54u);
  EXPECT_EQ(static_cast<char>(z.data[53]), 'z');
  EXPECT_EQ(set.FileOf(z), folder.File("a.gguf"));
}

TEST(GgufFile, AcceptsAFileOfMetadataOnly) {
  EXPECT_TRUE(Parse(GgufWriter().Text("a", "b").Bytes()).tensors.empty());
}

// Each in one line, with the field and what was found.
TEST(GgufFile, RefusesMalformedGoldens) {
  const std::vector<std::pair<std::string, std::vector<std::string>>> invalid = {
      {"alignment-0", {"general.alignment", "found 0"}},
      {"alignment-huge", {"general.alignment", "found 2147483648"}},
      {"array-count-huge", {"found 4611686018427387904", "room"}},
      {"bool-2", {"a bool of 2"}},
      {"dim-bytes-wrap", {"dimensions"}},
      {"dim-product-wraps", {"dimensions"}},
      {"dims-0", {"found 0 dimensions"}},
      {"dims-5", {"found 5 dimensions"}},
      {"key-empty", {"key 0", "found 0 bytes"}},
      {"key-not-utf8", {"key 0", "UTF-8"}},
      {"kv-count-huge", {"pair count: found 9223372036854775807"}},
      {"magic", {"magic: found \"GGML\""}},
      {"name-empty", {"name of tensor 0", "found 0 bytes"}},
      {"offset-behind-end", {"offset", "within"}},
      {"offset-wraps", {"offset"}},
      {"row-not-blocks", {"[48", "blocks of 32"}},
      {"short-header", {"the end of the file (15 bytes)"}},
      {"split-missing-part-00001-of-00003", {"split.count: found 3", "-00002-of-00003.gguf"}},
      {"string-length-huge", {"general.architecture", "length"}},
      {"tensor-twice", {"it twice"}}};
  for (const auto& [name, parts] : invalid) {
    SCOPED_TRACE(name);
    const std::string path = kGolden + ("malformed/" + name) + ".gguf";
    for (const std::string& part : parts) {
      ExpectError<InvalidInput>([&] { GgufSet::Open(path); }, {path, part, "expected"});
    }
  }
  const std::vector<std::pair<std::string, std::string>> unsupported = {
      {"big-endian", "big-endian"},
      {"type-4", "4, which was removed"},
      {"version-0", "version: found 0"},
      {"version-99", "version: found 99"}};
  for (const auto& [name, part] : unsupported) {
    SCOPED_TRACE(name);
    const std::string path = kGolden + ("malformed/" + name) + ".gguf";
    ExpectError<Unsupported>([&] { GgufSet::Open(path); }, {path, part, "expected"});
  }
}

TEST(GgufFile, RefusesNestedArraysWithoutDescending) {
  std::string bytes = "GGUF";
  AppendBytes<uint32_t>(bytes, 3);
  AppendBytes<uint64_t>(bytes, 0);
  AppendBytes<uint64_t>(bytes, 1);
  AppendText(bytes, "deep");
  for (int i = 0; i < 100000; ++i) {
    AppendBytes(bytes, static_cast<uint32_t>(GgufType::kArray));
    if (i > 0) AppendBytes<uint64_t>(bytes, 1);
  }
  ExpectError<Unsupported>([&] { Parse(bytes); }, {"deep", "array of arrays"});
}

TEST(GgufFile, RefusesOtherWrongHeaders) {
  GgufWriter old;
  old.version = 1;
  ExpectError<Unsupported>([&] { Parse(old.Bytes()); }, {"version: found 1"});
  ExpectError<InvalidInput>([&] { Parse(GgufWriter().U32("a", 1).U32("a", 2).Bytes()); },
                            {"a: found the key twice"});
  ExpectError<InvalidInput>([&] { Parse(GgufWriter().Text("a\nb", "").Bytes()); },
                            {"control characters"});
  ExpectError<InvalidInput>([&] { Parse(GgufWriter().U32("general.alignment", 24).Bytes()); },
                            {"general.alignment: found 24", "power of two"});
  ExpectError<InvalidInput>(
      [&] { Parse(GgufWriter().Plain<uint8_t>("a", static_cast<GgufType>(13), 1).Bytes()); },
      {"a, type: found 13"});
  ExpectError<InvalidInput>(
      [&] {
        Parse(GgufWriter().Array<uint8_t>("a", GgufType::kBool, {1, 0, 5}).Bytes());
      },
      {"a: found a bool of 5"});
  ExpectError<InvalidInput>(
      [&] {
        Parse(GgufWriter().Tensor("t", {0, 4}, GgufTensorType::kF32, "").Bytes());
      },
      {"'t', dimensions: found [0, 4]"});
  ExpectError<Unsupported>([&] { Parse(GgufWriter().Tensor("t", {256}, 16, Zeros(66)).Bytes()); },
                           {"IQ2_XXS (16)"});
  ExpectError<Unsupported>([&] { Parse(GgufWriter().Tensor("t", {256}, 1000, Zeros(66)).Bytes()); },
                           {"1000, which is not known"});
  // A file that was cut off.
  const std::string whole =
      GgufWriter().Tensor("t", {32, 2}, GgufTensorType::kF32, Zeros(256)).Bytes();
  ExpectError<InvalidInput>([&] { Parse(whole.substr(0, whole.size() - 1)); },
                            {"tensor 't', offset", "is the file complete?"});
  // Every beginning of a file is an error, and none reads beyond it.
  const std::string all = GgufWriter()
                              .Texts("words", {"a", "bc"})
                              .U32("n", 1)
                              .Tensor("t", {32}, GgufTensorType::kF32, Zeros(128))
                              .Bytes();
  for (size_t size = 0; size < all.size(); ++size) {
    const std::vector<std::byte> part(reinterpret_cast<const std::byte*>(all.data()),
                                      reinterpret_cast<const std::byte*>(all.data()) + size);
    EXPECT_THROW(ParseGgufHeader("f.gguf", part), InvalidInput) << size;
  }
}

// Offsets as written, so that they may overlap or be unaligned.
std::string TwoTensors(uint64_t first, uint64_t second) {
  std::string bytes = "GGUF";
  AppendBytes<uint32_t>(bytes, 3);
  AppendBytes<uint64_t>(bytes, 2);
  AppendBytes<uint64_t>(bytes, 0);
  for (const auto& [name, offset] : {std::pair("a", first), std::pair("b", second)}) {
    AppendText(bytes, name);
    AppendBytes<uint32_t>(bytes, 1);
    AppendBytes<uint64_t>(bytes, 16);
    AppendBytes<uint32_t>(bytes, 0);
    AppendBytes<uint64_t>(bytes, offset);
  }
  bytes.resize((bytes.size() + 31) / 32 * 32 + 128);
  return bytes;
}

TEST(GgufFile, TensorsMustNotOverlap) {
  EXPECT_EQ(Parse(TwoTensors(0, 64)).tensors.size(), 2u);
  EXPECT_EQ(Parse(TwoTensors(64, 0)).tensors.size(), 2u);
  ExpectError<InvalidInput>([&] { Parse(TwoTensors(0, 32)); },
                            {"tensor 'b', offset: found bytes of tensor 'a'"});
  ExpectError<InvalidInput>([&] { Parse(TwoTensors(0, 0)); }, {"offset: found bytes of tensor"});
  ExpectError<InvalidInput>([&] { Parse(TwoTensors(0, 68)); }, {"a multiple of 32"});
}

GgufWriter Part(int number, int count, int num_tensors) {
  GgufWriter part;
  part.U16("split.no", static_cast<uint16_t>(number));
  part.U16("split.count", static_cast<uint16_t>(count));
  part.I32("split.tensors.count", num_tensors);
  part.Tensor(fmt::format("t{}", number), {8}, GgufTensorType::kF32,
              std::string(32, static_cast<char>('a' + number)));
  return part;
}

TEST(GgufFile, OpensAllPartsOfASplitFile) {
  const TempFolder folder;
  const auto write = [&](int number, const GgufWriter& part) {
    return folder.Write(fmt::format("m-{:05}-of-00003.gguf", number + 1), part.Bytes());
  };
  std::vector<std::string> paths;
  for (int i = 0; i < 3; ++i) paths.push_back(write(i, Part(i, 3, 3).Text("only", "first")));
  {
    const GgufSet set = GgufSet::Open(paths[0]);
    EXPECT_EQ(set.num_files(), 3);
    ASSERT_EQ(set.tensors().size(), 3u);
    EXPECT_EQ(static_cast<char>(set.FindTensor("t2")->data[31]), 'c');
    EXPECT_EQ(set.FileOf(*set.FindTensor("t2")), paths[2]);
    EXPECT_EQ(FindGgufFile(folder.path()), paths[0]);
  }
  ExpectError<InvalidInput>([&] { GgufSet::Open(paths[1]); },
                            {"split.no: found 1", "m-00001-of-00003.gguf"});
  write(2, Part(1, 3, 3));
  ExpectError<InvalidInput>([&] { GgufSet::Open(paths[0]); }, {paths[2], "split.no: found 1"});
  write(2, Part(2, 4, 3));
  ExpectError<InvalidInput>([&] { GgufSet::Open(paths[0]); }, {paths[2], "split.count: found 4"});
  write(2, Part(2, 3, 4));
  ExpectError<InvalidInput>([&] { GgufSet::Open(paths[0]); },
                            {paths[2], "split.tensors.count: found 4", "expected 3"});
  write(2, Part(2, 3, 4).Tensor("t1", {8}, GgufTensorType::kF32, Zeros(32)));
  write(1, Part(1, 3, 4));
  write(0, Part(0, 3, 4));
  ExpectError<InvalidInput>([&] { GgufSet::Open(paths[0]); }, {"tensor 't1'", paths[1], paths[2]});
  ExpectError<InvalidInput>([&] { GgufSet::Open(folder.Write("m.gguf", Part(0, 3, 3).Bytes())); },
                            {"split.count: found 3", "NAME-00001-of-00003.gguf"});
  // Merging tools leave the keys in whole files.
  EXPECT_EQ(GgufSet::Open(folder.Write("w.gguf", Part(0, 0, 1).Bytes())).num_files(), 1);
}

TEST(GgufFile, FindsTheFileThatAPathMeans) {
  const TempFolder folder;
  EXPECT_EQ(FindGgufFile(folder.path()), "");
  EXPECT_EQ(FindGgufFile(folder.File("none.gguf")), "");
  const std::string bytes = GgufWriter().U32("a", 1).Bytes();
  const std::string a = folder.Write("a.gguf", bytes);
  EXPECT_EQ(FindGgufFile(a), a);
  folder.Write("mmproj-a.gguf", bytes);
  EXPECT_EQ(FindGgufFile(folder.path()), folder.File("a.gguf"));
  EXPECT_EQ(FindGgufFile(folder.Write("model.bin", bytes)), folder.File("model.bin"));
  EXPECT_EQ(FindGgufFile(folder.Write("text.txt", "GGU")), "");
  folder.Write("b.gguf", bytes);
  ExpectError<InvalidInput>([&] { FindGgufFile(folder.path()); }, {"a.gguf, b.gguf"});
  folder.Write("model.safetensors", "");
  EXPECT_EQ(FindGgufFile(folder.path()), "") << "a checkpoint of Hugging Face comes first";
  ExpectError<Unsupported>([&] { GgufSet::Open(folder.Write("m.gguf-split-a", bytes)); },
                           {"cut by bytes"});
}

TEST(GgufFile, TypesHaveTheirCodes) {
  EXPECT_EQ(FindGgufTensorType(12), GgufTensorType::kQ4_K);
  EXPECT_EQ(FindGgufTensorType(39), GgufTensorType::kMXFP4);
  EXPECT_FALSE(FindGgufTensorType(4).has_value());
  const GgufSet set = GgufSet::Open(std::string(kGolden) + "blocks.gguf");
  EXPECT_EQ(set.tensors().size(), kNumGgufTensorTypes);
  for (const GgufTensor& tensor : set.tensors()) {
    std::string name(LayoutOf(tensor.type).name);
    std::transform(name.begin(), name.end(), name.begin(),
                   [](char c) { return static_cast<char>(std::tolower(c)); });
    EXPECT_EQ(tensor.name, name + ".weight");
  }
}

}  // namespace
}  // namespace pmkvq
