#include "pmkvq/research/calib/scale_files.h"

#include <gtest/gtest.h>

#include <limits>
#include <map>

#include "pmkvq/base/error.h"
#include "pmkvq/io/safetensors.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::TempFolder;

constexpr UniformKvGeometry kGeometry{
    .num_layers = 2, .num_heads = 4, .num_kv_heads = 2, .head_dim = 8};

std::vector<Tensor> Blocks(float first) {
  std::vector<Tensor> blocks;
  for (int block = 0; block < 2; ++block) {
    Tensor tensor(DType::kF32, {2, 4});
    for (int i = 0; i < 8; ++i) tensor.As<float>()[i] = 0.1f + static_cast<float>(8 * block + i);
    blocks.push_back(tensor);
  }
  blocks[0].As<float>()[0] = first;
  return blocks;
}

TEST(ScaleFiles, ReadBackExactly) {
  const TempFolder folder;
  for (const ScaleFileKind kind : {ScaleFileKind::kMaxKeys, ScaleFileKind::kRepScales}) {
    const std::vector<Tensor> written = Blocks(0.5f);
    WriteScaleFile(kind, written, "model-a", folder.File("f.safetensors"));
    const std::vector<Tensor> read =
        ReadScaleFile(kind, kGeometry, "model-a", folder.File("f.safetensors"));
    ASSERT_EQ(read.size(), 2u);
    for (size_t block = 0; block < 2; ++block) {
      EXPECT_EQ(read[block].shape(), (Shape{2, 4}));
      for (int i = 0; i < 8; ++i) {
        EXPECT_EQ(read[block].As<float>()[i], written[block].As<float>()[i]);
      }
    }
  }
}

TEST(ScaleFiles, BadFilesAreNamed) {
  const TempFolder folder;
  const std::string path = folder.File("f.safetensors");
  const auto write = [&](ScaleFileKind kind, float first) {
    WriteScaleFile(kind, Blocks(first), "model-a", path);
  };
  const auto read = [&](ScaleFileKind kind, const std::string& model = "model-a",
                        UniformKvGeometry geometry = kGeometry) {
    return [=, &path] { ReadScaleFile(kind, geometry, model, path); };
  };
  write(ScaleFileKind::kMaxKeys, 1);
  ExpectError<InvalidInput>(read(ScaleFileKind::kMaxKeys, "model-b"), {path, "model-a", "model-b"});
  ExpectError<InvalidInput>(read(ScaleFileKind::kRepScales), {path, "rep_scales.0"});
  ExpectError<InvalidInput>(read(ScaleFileKind::kMaxKeys, "model-a", {3, 4, 2, 8}),
                            {path, "max_keys.2"});
  ExpectError<InvalidInput>(read(ScaleFileKind::kMaxKeys, "model-a", {1, 4, 2, 8}),
                            {path, "found 2 tensors, expected 1"});
  ExpectError<InvalidInput>(read(ScaleFileKind::kMaxKeys, "model-a", {2, 4, 2, 16}),
                            {path, "max_keys.0"});
  write(ScaleFileKind::kMaxKeys, -1);
  ExpectError<InvalidInput>(read(ScaleFileKind::kMaxKeys), {path, "max_keys.0", "-1", "index 0"});
  write(ScaleFileKind::kMaxKeys, std::numeric_limits<float>::quiet_NaN());
  ExpectError<InvalidInput>(read(ScaleFileKind::kMaxKeys), {path, "max_keys.0", "nan"});
  // A channel that is always zero has max 0; a scale must not be 0.
  write(ScaleFileKind::kMaxKeys, 0);
  EXPECT_NO_THROW(read(ScaleFileKind::kMaxKeys)());
  write(ScaleFileKind::kRepScales, 0);
  ExpectError<InvalidInput>(read(ScaleFileKind::kRepScales), {path, "rep_scales.0", "> 0"});
}

TEST(ScaleFiles, AForeignFileWithoutIdentityIsTaken) {
  const TempFolder folder;
  const std::vector<Tensor> blocks = Blocks(1);
  WriteSafetensors(folder.File("f.safetensors"),
                   {{"max_keys.0", blocks[0].view()}, {"max_keys.1", blocks[1].view()}});
  EXPECT_EQ(
      ReadScaleFile(ScaleFileKind::kMaxKeys, kGeometry, "any", folder.File("f.safetensors")).size(),
      2u);
}

}  // namespace
}  // namespace pmkvq
