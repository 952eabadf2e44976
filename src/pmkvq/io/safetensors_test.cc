#include "pmkvq/io/safetensors.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <tuple>

#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::TempFolder;

std::string Image(uint64_t header_bytes, const std::string& rest) {
  std::string image(sizeof(header_bytes), '\0');
  std::memcpy(image.data(), &header_bytes, sizeof(header_bytes));
  return image + rest;
}

std::string Image(const std::string& header, size_t data_bytes) {
  std::string data;
  for (size_t i = 0; i < data_bytes; ++i) data += static_cast<char>(i + 1);
  return Image(header.size(), header + data);
}

std::string Entry(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return fmt::format(R"({{"dtype":"{}","shape":{},"data_offsets":{}}})", dtype, shape, offsets);
}

SafetensorsHeader ParseHeader(const std::string& header, uint64_t data_bytes) {
  return ParseSafetensorsHeader("m.safetensors", header, nullptr, data_bytes);
}

// One tensor "w.x" with that entry in a file of 16 data bytes must be refused with these words.
void ExpectRefused(const std::string& entry, std::initializer_list<std::string> parts) {
  SCOPED_TRACE(entry);
  ExpectError<InvalidInput>([&] { ParseHeader("{\"w.x\":" + entry + "}", 16); }, parts);
}

TEST(Safetensors, RoundTrip) {
  const TempFolder folder;
  Tensor a(DType::kF32, {2, 3});
  for (int i = 0; i < 6; ++i) a.As<float>()[i] = static_cast<float>(i) * 0.5f;
  Tensor b(DType::kU8, {5});
  for (int i = 0; i < 5; ++i) b.As<uint8_t>()[i] = static_cast<uint8_t>(i + 250);
  Tensor c(DType::kI64, {});
  c.As<int64_t>()[0] = -9;
  const Tensor d(DType::kBF16, {3, 0});
  const std::string path = folder.File("t.safetensors");
  const std::map<std::string, std::string> metadata = {{"format", "pt"}, {"k\"", "v\n"}};
  WriteSafetensors(path, {{"b", b.view()}, {"a", a.view()}, {"c", c.view()}, {"d", d.view()}},
                   metadata);
  EXPECT_EQ(folder.NumEntries(), 1u);

  const SafetensorsFile file = SafetensorsFile::Open(path);
  EXPECT_EQ(file.path(), path);
  EXPECT_EQ(file.metadata(), metadata);
  ASSERT_EQ(file.tensors().size(), 4u);
  const TensorView& got = file.Get("a", DType::kF32, {2, 3});
  EXPECT_EQ(std::memcmp(got.data, a.view().data, 24), 0);
  EXPECT_EQ(file.Get("b", DType::kU8, {5}).As<uint8_t>()[4], 254);
  EXPECT_EQ(file.Get("c", DType::kI64, {}).As<int64_t>()[0], -9);
  EXPECT_EQ(file.Get("d", DType::kBF16, {3, 0}).num_bytes(), 0u);
  EXPECT_EQ(file.Find("e"), nullptr);
}

TEST(Safetensors, WrittenDataIsAlignedAndOrderedByElementSize) {
  const TempFolder folder;
  const Tensor bytes(DType::kU8, {3});
  const Tensor floats(DType::kF32, {5});
  const Tensor longs(DType::kI64, {1});
  const std::string path = folder.File("t.safetensors");
  WriteSafetensors(path, {{"a", bytes.view()}, {"b", floats.view()}, {"c", longs.view()}});
  const std::string image = ReadFile(path);
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, image.data(), sizeof(header_bytes));
  EXPECT_EQ((8 + header_bytes) % 64, 0u);
  EXPECT_EQ(image[8], '{');
  const SafetensorsFile file = SafetensorsFile::Open(path);
  EXPECT_EQ(file.Find("b")->data - file.Find("c")->data, 8);
  EXPECT_EQ(file.Find("a")->data - file.Find("b")->data, 20);
}

TEST(Safetensors, WritesAnEmptyFile) {
  const TempFolder folder;
  const std::string path = folder.File("t.safetensors");
  WriteSafetensors(path, {});
  EXPECT_TRUE(SafetensorsFile::Open(path).tensors().empty());
}

TEST(Safetensors, UnwritablePath) {
  ExpectError<IoError>([] { WriteSafetensors("/no/such/folder/t.safetensors", {}); },
                       {"/no/such/folder/t.safetensors", "cannot write"});
}

TEST(Safetensors, AnyTensorsRoundTrip) {
  rc::check("Open(Write(tensors)) == tensors", [] {
    const TempFolder folder;
    const auto count = *rc::gen::inRange<size_t>(0, 6);
    std::vector<Tensor> owned;
    std::map<std::string, TensorView> tensors;
    for (size_t i = 0; i < count; ++i) {
      const auto dtype = static_cast<DType>(*rc::gen::inRange(0, 13));
      Shape shape = *rc::gen::container<Shape>(*rc::gen::inRange<size_t>(0, 4),
                                               rc::gen::inRange<int64_t>(0, 5));
      Tensor& tensor = owned.emplace_back(dtype, std::move(shape));
      for (size_t j = 0; j < tensor.view().num_bytes(); ++j) {
        tensor.data()[j] = static_cast<std::byte>(i * 31 + j);
      }
      tensors.emplace(fmt::format("t{}", i), tensor.view());
    }
    const std::string path = folder.File("t.safetensors");
    WriteSafetensors(path, tensors);
    const SafetensorsFile file = SafetensorsFile::Open(path);
    RC_ASSERT(file.tensors().size() == tensors.size());
    for (const auto& [name, view] : tensors) {
      const TensorView& got = file.Get(name, view.dtype, view.shape);
      RC_ASSERT(std::equal(view.data, view.data + view.num_bytes(), got.data));
      RC_ASSERT(reinterpret_cast<uintptr_t>(got.data) % SizeOf(got.dtype) == 0);
    }
  });
}

TEST(Safetensors, MisalignedTensorsOfForeignFilesAreCopied) {
  const TempFolder folder;
  const std::string header =
      "{\"a\":" + Entry("U8", "[1]", "[0,1]") + ",\"b\":" + Entry("F32", "[2]", "[1,9]") + "}";
  SafetensorsFile file = SafetensorsFile::Open(folder.Write("t.safetensors", Image(header, 9)));
  SafetensorsFile moved = std::move(file);
  const TensorView& view = moved.Get("b", DType::kF32, {2});
  EXPECT_EQ(reinterpret_cast<uintptr_t>(view.data) % alignof(float), 0u);
  for (int i = 0; i < 8; ++i) EXPECT_EQ(view.data[i], static_cast<std::byte>(i + 2));
}

TEST(Safetensors, ReadsTheGoldenFiles) {
  const std::string golden = PMKVQ_SOURCE_DIR "/tests/golden/";
  for (const char* name : {"cache", "default-model", "quantizer", "tiny-llama"}) {
    const SafetensorsFile file = SafetensorsFile::Open(golden + name + ".safetensors");
    EXPECT_FALSE(file.tensors().empty()) << name;
  }
  const SafetensorsFile tiny = SafetensorsFile::Open(golden + "tiny-llama.safetensors");
  EXPECT_EQ(tiny.Get("prompt_ids", DType::kI64, {64}).num_bytes(), 512u);
  const TensorView& logits = tiny.Get("logits", DType::kF32, {64, 256});
  EXPECT_EQ(logits.data - tiny.Find("prompt_ids")->data, 512);
}

TEST(Safetensors, GetNamesFileTensorFoundAndExpected) {
  const SafetensorsFile file =
      SafetensorsFile::Open(PMKVQ_SOURCE_DIR "/tests/golden/tiny-llama.safetensors");
  ExpectError<InvalidInput>(
      [&] {
        file.Get("none", DType::kF32, {1, 2});
      },
      {"tiny-llama.safetensors] tensor 'none': found nothing, expected F32 [1, 2]"});
  ExpectError<InvalidInput>(
      [&] {
        file.Get("logits", DType::kBF16, {64, 256});
      },
      {"tensor 'logits': found F32 [64, 256], expected BF16 [64, 256]"});
  ExpectError<InvalidInput>(
      [&] {
        file.Get("logits", DType::kF32, {64, 255});
      },
      {"found F32 [64, 256], expected F32 [64, 255]"});
}

TEST(SafetensorsFile, LyingPrefixAndTruncation) {
  const TempFolder folder;
  const auto open = [&](const std::string& image) {
    const std::string path = folder.Write("t.safetensors", image);
    return [path] { SafetensorsFile::Open(path); };
  };
  ExpectError<InvalidInput>(open(""), {"t.safetensors] file size: found 0 bytes"});
  ExpectError<InvalidInput>(open("1234567"), {"file size: found 7 bytes, expected at least 8"});
  ExpectError<InvalidInput>(open(Image(3, "{}")),
                            {"header length: found 3 bytes, expected at most 2"});
  ExpectError<InvalidInput>(open(Image(~uint64_t{0}, "{}")),
                            {"header length: found 18446744073709551615 bytes"});
  ExpectError<InvalidInput>(open(Image(0, "")), {"not valid JSON"});
  const std::string header = "{\"a\":" + Entry("F32", "[4]", "[0,16]") + "}";
  ExpectError<InvalidInput>(open(Image(header, 15)),
                            {"tensor 'a', data_offsets: found [0,16]", "<= 15"});
  ExpectError<InvalidInput>(open(Image(header, 17)), {"data: found 17 bytes, expected 16"});
  // A header longer than the reference implementation allows is refused before it is parsed.
  const std::string path = folder.Write("sparse.safetensors", Image(100'000'001, "{}"));
  std::filesystem::resize_file(path, 200'000'000);
  ExpectError<InvalidInput>([&] { SafetensorsFile::Open(path); },
                            {"header length: found 100000001 bytes, expected at most 100000000"});
}

TEST(SafetensorsHeader, NotWhatItShouldBe) {
  ExpectError<InvalidInput>([] { ParseHeader("{x", 0); }, {"[m.safetensors] not valid JSON"});
  ExpectError<InvalidInput>([] { ParseHeader("[]", 0); }, {"found [], expected an object"});
  ExpectError<InvalidInput>([] { ParseHeader(R"({"__metadata__":{"a":1}})", 0); },
                            {"__metadata__.a: found 1, expected a string"});
  const std::string entry = Entry("U8", "[1]", "[0,1]");
  ExpectError<InvalidInput>([&] { ParseHeader("{\"a\":" + entry + ",\"a\":" + entry + "}", 1); },
                            {"a: found twice"});
  ExpectError<InvalidInput>([] { ParseHeader("{}", 4); }, {"data: found 4 bytes, expected 0"});
  ExpectRefused("7", {"[m.safetensors] tensor 'w.x', entry: found 7, expected an object"});
}

TEST(SafetensorsHeader, BadDTypes) {
  for (const char* dtype : {"f32", "", "BF 16", "8", "ATYPEOFSEVENTEENB"}) {
    ExpectRefused(
        Entry(dtype, "[4]", "[0,16]"),
        {fmt::format("tensor 'w.x', dtype: found \"{}\", expected one of F32 F16", dtype)});
  }
  ExpectRefused(R"({"dtype":1,"shape":[4],"data_offsets":[0,16]})", {"dtype: found 1"});
  ExpectRefused(R"({"shape":[4],"data_offsets":[0,16]})", {"'w.x', dtype: found null"});
}

TEST(SafetensorsHeader, TypesWithoutArithmeticAreListed) {
  const auto parse = [](const char* dtype, const char* shape, int num_bytes) {
    return ParseHeader("{\"w\":" + Entry(dtype, shape, fmt::format("[0,{}]", num_bytes)) + "}",
                       static_cast<uint64_t>(num_bytes));
  };
  const std::tuple<const char*, const char*, int> cases[] = {
      {"F8_E4M3", "[4, 2]", 8}, {"F8_E5M2", "[3]", 3}, {"F8_E8M0", "[]", 1}, {"F4", "[4]", 2},
      {"F6_E2M3", "[4]", 3},    {"C64", "[2]", 16},    {"I4", "[5]", 3},     {"BF8_NEW", "[9]", 2}};
  for (const auto& [dtype, shape, num_bytes] : cases) {
    const SafetensorsHeader header = parse(dtype, shape, num_bytes);
    EXPECT_TRUE(header.tensors.empty());
    ASSERT_EQ(header.foreign_tensors.size(), 1u) << dtype;
    EXPECT_EQ(header.foreign_tensors.at("w").dtype, dtype);
    EXPECT_EQ(ToString(header.foreign_tensors.at("w").shape), shape);
    EXPECT_EQ(header.foreign_tensors.at("w").num_bytes, static_cast<uint64_t>(num_bytes));
  }
  ExpectRefused(Entry("F8_E4M3", "[4]", "[0,16]"),
                {"found 16 bytes, expected 4 bytes for F8_E4M3"});
  ExpectRefused(Entry("F4", "[31]", "[0,16]"), {"shape: found [31]"});
}

TEST(Safetensors, ForeignTensorsAreRefusedWhenNeeded) {
  const TempFolder folder;
  const std::string header =
      "{\"a\":" + Entry("F8_E4M3", "[2]", "[0,2]") + ",\"b\":" + Entry("U8", "[1]", "[2,3]") + "}";
  const SafetensorsFile file =
      SafetensorsFile::Open(folder.Write("t.safetensors", Image(header, 3)));
  EXPECT_EQ(file.Get("b", DType::kU8, {1}).num_bytes(), 1u);
  EXPECT_EQ(file.Find("a"), nullptr);
  ExpectError<Unsupported>([&] { (void)file.Get("a", DType::kF32, {2}); },
                           {"t.safetensors] tensor 'a': found F8_E4M3 [2]"});
}

TEST(SafetensorsHeader, BadShapes) {
  for (const char* shape :
       {"[-4]", "[-2,-2]", "[4.0]", "[\"4\"]", "{}", "4", "null", "[4611686018427387904]",
        "[4294967296,4294967296]", "[0,4294967296,4294967296]", "[9223372036854775808]"}) {
    ExpectRefused(Entry("F32", shape, "[0,16]"), {"tensor 'w.x', shape: found ", "sizes >= 0"});
  }
  ExpectRefused(Entry("F32", "[5]", "[0,16]"),
                {"data_offsets: found 16 bytes, expected 20 bytes for F32 [5]"});
  ExpectRefused(Entry("F64", "[4]", "[0,16]"), {"expected 32 bytes for F64 [4]"});
  ExpectRefused(Entry("F32", "[3]", "[0,16]"), {"expected 12 bytes for F32 [3]"});
}

TEST(SafetensorsHeader, BadOffsets) {
  for (const char* offsets :
       {"[0,17]", "[-1,15]", "[16,0]", "[0]", "[0,16,16]", "[0,\"16\"]", "[0.0,16]", "{}", "null",
        "[0,9223372036854775807]", "[0,18446744073709551615]"}) {
    ExpectRefused(Entry("F32", "[4]", offsets),
                  {"tensor 'w.x', data_offsets: found ", "0 <= begin <= end <= 16"});
  }
}

TEST(SafetensorsHeader, OverlapAndGap) {
  const auto two = [](const std::string& first, const std::string& second) {
    return "{\"p\":" + Entry("U8", "[8]", first) + ",\"q\":" + Entry("U8", "[8]", second) + "}";
  };
  EXPECT_EQ(ParseHeader(two("[8,16]", "[0,8]"), 16).tensors.size(), 2u);
  ExpectError<InvalidInput>([&] { ParseHeader(two("[0,8]", "[7,15]"), 16); },
                            {"tensor 'q', data_offsets: found begin 7, expected 8", "overlaps"});
  ExpectError<InvalidInput>([&] { ParseHeader(two("[0,8]", "[0,8]"), 16); }, {"'q'", "overlaps"});
  ExpectError<InvalidInput>([&] { ParseHeader(two("[0,8]", "[9,17]"), 17); },
                            {"tensor 'q', data_offsets: found begin 9, expected 8", "gap"});
  ExpectError<InvalidInput>([&] { ParseHeader(two("[1,9]", "[9,17]"), 17); }, {"'p'", "gap"});
  ExpectError<InvalidInput>([&] { ParseHeader(two("[0,8]", "[8,16]"), 17); },
                            {"data: found 17 bytes, expected 16 by the header"});
}

TEST(SafetensorsHeader, ViewsPointBehindTheHeader) {
  std::vector<std::byte> data(16);
  const std::string text = "{\"a\":" + Entry("U8", "[4]", "[0,4]") +
                           ",\"b\":" + Entry("I16", "[2,3]", "[4,16]") + "}   ";
  const SafetensorsHeader header = ParseSafetensorsHeader("m", text, data.data(), data.size());
  EXPECT_EQ(header.tensors.at("b").data, data.data() + 4);
  EXPECT_EQ(header.tensors.at("b").shape, (Shape{2, 3}));
  EXPECT_EQ(header.tensors.at("b").dtype, DType::kI16);
}

}  // namespace
}  // namespace pmkvq
