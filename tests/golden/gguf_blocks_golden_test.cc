// Blocks of all GGUF types against gguf-py's values (tests/golden/README.md).
#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <string>
#include <vector>

#include "pmkvq/io/gguf/gguf_file.h"
#include "pmkvq/io/safetensors.h"
#include "pmkvq/kernels/gemm/gemm.h"

namespace pmkvq {
namespace {

constexpr const char* kGolden = PMKVQ_SOURCE_DIR "/tests/golden/gguf/";

TEST(GgufBlocksGolden, ExpansionAndOracleEqualTheirValues) {
  const GgufSet blocks = GgufSet::Open(std::string(kGolden) + "blocks.gguf");
  const SafetensorsFile values = SafetensorsFile::Open(std::string(kGolden) + "blocks.safetensors");
  ASSERT_EQ(blocks.tensors().size(), kNumGgufTensorTypes);
  for (const GgufTensor& tensor : blocks.tensors()) {
    SCOPED_TRACE(std::string(tensor.name));
    const TensorView* expected = values.Find(std::string(tensor.name));
    ASSERT_NE(expected, nullptr);
    ASSERT_EQ(expected->shape, (Shape{tensor.rows, tensor.cols}));
    const WeightView weight{tensor.data, WeightFormatNamed(LayoutOf(tensor.type).name).value(),
                            tensor.rows, tensor.cols};
    std::vector<float> row(static_cast<size_t>(tensor.cols));
    for (int64_t r = 0; r < tensor.rows; ++r) {
      const float* expected_row = expected->As<float>() + r * tensor.cols;
      ExpandRow(weight, r, row.data());
      EXPECT_EQ(std::memcmp(row.data(), expected_row, row.size() * sizeof(float)), 0) << r;
      for (int64_t col = 0; col < tensor.cols; ++col) {
        ASSERT_EQ(std::bit_cast<uint32_t>(static_cast<float>(ref::WeightAt(weight, r, col))),
                  std::bit_cast<uint32_t>(expected_row[col]))
            << r << " " << col;
      }
    }
  }
}

}  // namespace
}  // namespace pmkvq
