#include "pmkvq/research/methods/method_data.h"

#include <gtest/gtest.h>

#include <limits>

#include "pmkvq/base/error.h"
#include "pmkvq/io/safetensors.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::TempFolder;

constexpr char kIdentity[] = "0123456789abcdef0123456789abcdef";

MethodData Example() {
  MethodData data;
  data.method = "oscar";
  data.spec = "oscar:bits=4";
  data.model_identity = kIdentity;
  data.geometry = {2, 4, 2, 8};
  data.record = {"texts.jsonl", "single", 7, 64, 128, 18446744073709551615ull, "q8"};
  Tensor matrix(DType::kF32, {2, 3});
  for (int i = 0; i < 6; ++i) matrix.As<float>()[i] = static_cast<float>(i) / 7.0f;
  data.tensors.emplace("a.0", std::move(matrix));
  data.tensors.emplace("a.1", Tensor(DType::kF32, {1}));
  return data;
}

class MethodDataFile : public testing::Test {
 protected:
  // A file with the example's tensors and its metadata, changed by `change`.
  template <class Change>
  void Write(const Change& change) {
    SaveMethodData(Example(), path_);
    const SafetensorsFile file = SafetensorsFile::Open(path_);
    std::map<std::string, std::string> metadata = file.metadata();
    std::map<std::string, TensorView> tensors = file.tensors();
    change(metadata, tensors);
    WriteSafetensors(path_, tensors, metadata);
  }
  void ExpectRefused(const std::string& part) const {
    ExpectError<InvalidInput>([&] { LoadMethodData(path_); }, {path_, part});
  }
  void ExpectFieldRefused(const std::string& field, const std::string& value,
                          const std::string& part) {
    SCOPED_TRACE(field);
    Write([&](auto& metadata, auto&) { metadata[field] = value; });
    ExpectRefused(field + ": found '" + value + "', expected " + part);
  }

  TempFolder folder_;
  const std::string path_ = folder_.path() + "/data.safetensors";
};

TEST_F(MethodDataFile, ReadsBackAsWritten) {
  const MethodData data = Example();
  SaveMethodData(data, path_);
  const MethodData read = LoadMethodData(path_);
  EXPECT_EQ(read.path, path_);
  EXPECT_EQ(read.method, data.method);
  EXPECT_EQ(read.spec, data.spec);
  EXPECT_EQ(read.model_identity, data.model_identity);
  EXPECT_EQ(read.geometry.num_layers, 2);
  EXPECT_EQ(read.geometry.num_heads, 4);
  EXPECT_EQ(read.geometry.num_kv_heads, 2);
  EXPECT_EQ(read.geometry.head_dim, 8);
  EXPECT_EQ(read.record.weights, "q8");
  EXPECT_EQ(read.record.dataset, "texts.jsonl");
  EXPECT_EQ(read.record.pack, "single");
  EXPECT_EQ(read.record.num_samples, 7);
  EXPECT_EQ(read.record.seq_len, 64);
  EXPECT_EQ(read.record.effective_len, 128);
  EXPECT_EQ(read.record.seed, 18446744073709551615ull);
  ASSERT_EQ(read.tensors.size(), 2u);
  const Tensor& matrix = read.Get("a.0", {2, 3});
  for (int i = 0; i < 6; ++i) {
    EXPECT_EQ(matrix.As<float>()[i], data.tensors.at("a.0").As<float>()[i]);
  }
}

TEST_F(MethodDataFile, NamesTheTensorThatIsNotThere) {
  SaveMethodData(Example(), path_);
  const MethodData data = LoadMethodData(path_);
  ExpectError<InvalidInput>([&] { data.Get("b.0", {1}); }, {path_, "no tensor 'b.0'"});
  ExpectError<InvalidInput>(
      [&] {
        data.Get("a.0", {3, 2});
      },
      {path_, "a.0: found shape [2, 3], expected [3, 2]"});
  EXPECT_EQ(BlockTensorName("a", 12), "a.12");
}

TEST_F(MethodDataFile, NamesWhatIsWrong) {
  ExpectError<IoError>([&] { LoadMethodData(path_); }, {path_});
  Write([](auto& metadata, auto&) { metadata.erase("format"); });
  ExpectRefused("no field 'format' in the header's metadata, expected a file made by pmkvq");
  ExpectFieldRefused("format", "pt", "'pmkvq-method-data'");
  ExpectFieldRefused("version", "2", "'1'");
  ExpectFieldRefused("num_layers", "0", "a number from 1 to 10000");
  ExpectFieldRefused("num_layers", "2x", "a number from 1 to 10000");
  ExpectFieldRefused("head_dim", "", "a number from 8 to 256");
  ExpectFieldRefused("num_kv_heads", "99999999999999999999", "a number from 1 to 1048576");
  ExpectFieldRefused("seq_len", "-1", "a number from 0 to");
  ExpectFieldRefused("seed", "-1", "a number from 0 to 18446744073709551615");
  Write([](auto& metadata, auto&) { metadata["num_kv_heads"] = "3"; });
  ExpectRefused("num_heads: found 4, expected a multiple of num_kv_heads 3");
  Write([](auto& metadata, auto&) { metadata.erase("method"); });
  ExpectRefused("no field 'method'");

  const Tensor codes(DType::kU8, {4});
  Write([&](auto&, auto& tensors) { tensors["a.1"] = codes.view(); });
  ExpectRefused("a.1: found another type, expected F32");
  Tensor values(DType::kF32, {3});
  values.As<float>()[1] = std::numeric_limits<float>::infinity();
  Write([&](auto&, auto& tensors) { tensors["a.1"] = values.view(); });
  ExpectRefused("a.1: found inf at index 1, expected finite numbers");
}

}  // namespace
}  // namespace pmkvq
