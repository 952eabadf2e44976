#include "pmkvq/io/weights/expert_stacks.h"

#include <gtest/gtest.h>

#include "pmkvq/base/error.h"
#include "pmkvq/io/weights/gguf_source.h"
#include "support/expect_error.h"
#include "support/gguf_writer.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::GgufWriter;
using testing_support::TempFolder;

constexpr uint64_t kExperts = 3;
constexpr uint64_t kRows = 5;
constexpr uint64_t kCols = 64;

std::string Counted(size_t num_bytes) {
  std::string bytes(num_bytes, '\0');
  for (size_t i = 0; i < num_bytes; ++i) bytes[i] = static_cast<char>(i * 7 + i / 256);
  return bytes;
}

GgufWriter Stack(GgufTensorType type, size_t num_bytes) {
  GgufWriter writer;
  writer.Text("general.architecture", "llama");
  writer.Tensor("blk.2.ffn_gate_exps.weight", {kCols, kRows, kExperts}, type, Counted(num_bytes));
  return writer;
}

// Plain types and blocks; and an alignment of the file that floats do not like.
TEST(ExpertStacks, ExpertsAreViewsOfTheTensor) {
  for (const GgufTensorType type :
       {GgufTensorType::kF32, GgufTensorType::kBF16, GgufTensorType::kQ4_0}) {
    for (const uint64_t alignment : {32, 8}) {
      const WeightFormat format = *WeightFormatNamed(LayoutOf(type).name);
      const auto bytes_of_one = static_cast<size_t>(static_cast<int64_t>(kRows) *
                                                    RowBytes(format, static_cast<int64_t>(kCols)));
      const std::string bytes = Counted(kExperts * bytes_of_one);
      GgufWriter writer = Stack(type, bytes.size());
      writer.alignment = alignment;
      if (alignment != 32) writer.U32("general.alignment", static_cast<uint32_t>(alignment));
      const TempFolder folder;
      const std::string path = folder.Write("m.gguf", writer.Bytes());
      const auto source = MakeGgufSource(GgufSet::Open(path), 8, kExperts);
      ASSERT_EQ(source->tensors().size(), kExperts);
      for (size_t i = 0; i < kExperts; ++i) {
        const std::string name = "blocks.2.mlp.experts." + std::to_string(i) + ".gate";
        const StoredWeight& weight = source->Get(name, {kRows, kCols});
        EXPECT_EQ(weight.stored_name, "blk.2.ffn_gate_exps.weight");
        EXPECT_EQ(source->StoredName(name), weight.stored_name);
        EXPECT_EQ(weight.format, format);
        EXPECT_TRUE(weight.of_block);
        ASSERT_EQ(weight.num_bytes, bytes_of_one);
        for (const bool dropped : {false, true}) {
          EXPECT_EQ(std::string_view(reinterpret_cast<const char*>(weight.data), bytes_of_one),
                    std::string_view(bytes).substr(i * bytes_of_one, bytes_of_one))
              << dropped;
          source->DropPages(weight);
        }
      }
      EXPECT_EQ(source->Identity("a"), MakeGgufSource(GgufSet::Open(path), 8)->Identity("a"))
          << "the identity is that of the file's tensors";
    }
  }
}

TEST(ExpertStacks, OtherShapesAreRefused) {
  const TempFolder folder;
  const std::string path =
      folder.Write("m.gguf", Stack(GgufTensorType::kF32, kExperts * kRows * kCols * 4).Bytes());
  ExpectError<InvalidInput>([&] { MakeGgufSource(GgufSet::Open(path), 8, 4); },
                            {"m.gguf] tensor 'blk.2.ffn_gate_exps.weight': found F32 [3, 5, 64], "
                             "expected matrices of 4 experts"});
  GgufWriter flat;
  flat.Text("general.architecture", "llama");
  flat.Tensor("blk.2.ffn_up_exps.weight", {kCols, kExperts}, GgufTensorType::kF32,
              Counted(kExperts * kCols * 4));
  const std::string flat_path = folder.Write("flat.gguf", flat.Bytes());
  ExpectError<InvalidInput>([&] { MakeGgufSource(GgufSet::Open(flat_path), 8, kExperts); },
                            {"'blk.2.ffn_up_exps.weight': found F32 [3, 64]"});
  // Without experts in the config nobody asks for it, and loading says so.
  const auto source = MakeGgufSource(GgufSet::Open(path), 8);
  ASSERT_EQ(source->tensors().size(), 1u);
  EXPECT_TRUE(source->tensors()[0].of_block);
}

}  // namespace
}  // namespace pmkvq
