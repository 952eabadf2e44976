#include "pmkvq/research/calib/sensitivity_file.h"

#include <gtest/gtest.h>

#include <limits>

#include "pmkvq/base/error.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::TempFolder;

SensitivityFile Example() {
  SensitivityFile file;
  file.sensitivity.k = {{1e-9, 0.1}, {0.25, 1.0 / 3.0}, {0.5, 2}, {3, 4e300}};
  file.sensitivity.v = {{0, 5e-324}, {0.125, 1}, {0.7, 2.1}, {3, 4}};
  file.num_blocks = 2;
  file.model_identity = "0123456789abcdef0123456789abcdef";
  file.record = {
      "data \"x\".jsonl", "concat", 32, 2048, 8192, std::numeric_limits<uint64_t>::max(), "q8"};
  return file;
}

TEST(SensitivityFile, ReadsBackExactly) {
  const SensitivityFile written = Example();
  const TempFolder folder;
  const SensitivityFile read =
      LoadSensitivity(folder.Write("sensitivity.json", SensitivityJson(written)));
  EXPECT_EQ(read.sensitivity.k, written.sensitivity.k);
  EXPECT_EQ(read.sensitivity.v, written.sensitivity.v);
  EXPECT_EQ(read.num_blocks, 2);
  EXPECT_EQ(read.model_identity, written.model_identity);
  EXPECT_EQ(read.record.dataset, written.record.dataset);
  EXPECT_EQ(read.record.pack, "concat");
  EXPECT_EQ(read.record.num_samples, 32);
  EXPECT_EQ(read.record.seq_len, 2048);
  EXPECT_EQ(read.record.effective_len, 8192);
  EXPECT_EQ(read.record.seed, written.record.seed);
  EXPECT_EQ(read.record.weights, "q8");
}

// Files of weights as stored do not say so; those of before there were others cannot.
TEST(SensitivityFile, WeightsAreAsStoredWhereItIsSilent) {
  SensitivityFile file = Example();
  file.record.weights = "as-stored";
  const std::string text = SensitivityJson(file);
  EXPECT_EQ(text.find("weights"), std::string::npos);
  EXPECT_EQ(ParseSensitivityJson(text, "f").record.weights, "as-stored");
}

TEST(SensitivityFile, MayHoldOnlySomeWidths) {
  const SensitivityFile file = ParseSensitivityJson(
      R"({"bits":[2,4],"k":{"4":[1,2,3],"2":[4,5,6]},"v":{"2":[7,8,9],"4":[0,0,1]}})", "f");
  EXPECT_EQ(file.num_blocks, 3);
  EXPECT_TRUE(file.sensitivity.k[WidthIndex(16)].empty());
  EXPECT_EQ(file.sensitivity.k[WidthIndex(4)], (std::vector<double>{1, 2, 3}));
  EXPECT_EQ(file.sensitivity.v[WidthIndex(2)], (std::vector<double>{7, 8, 9}));
  EXPECT_EQ(file.model_identity, "");
  // And is written back as it was.
  const SensitivityFile again = ParseSensitivityJson(SensitivityJson(file), "g");
  EXPECT_EQ(again.sensitivity.k, file.sensitivity.k);
  EXPECT_EQ(again.sensitivity.v, file.sensitivity.v);
}

TEST(SensitivityFile, BadFilesAreNamed) {
  const auto expect = [](const char* text, std::initializer_list<std::string> parts) {
    ExpectError<InvalidInput>([&] { ParseSensitivityJson(text, "s.json"); }, parts);
  };
  expect(R"({"k":{},"v":{}})", {"s.json", "bits"});
  expect(R"({"bits":[],"k":{},"v":{}})", {"s.json", "bits", "list of widths"});
  expect(R"({"bits":[3],"k":{},"v":{}})", {"s.json", "bits", "3", "16, 8, 4 or 2"});
  expect(R"({"bits":[4,4],"k":{},"v":{}})", {"s.json", "bits", "once"});
  expect(R"({"bits":[4],"k":{},"v":{}})", {"s.json", "k", "4"});
  expect(R"({"bits":[4],"k":{"4":[]},"v":{"4":[]}})", {"k.4", "one value per block"});
  expect(R"({"bits":[4],"k":{"4":[1,2]},"v":{"4":[1]}})", {"v.4", "2 values"});
  expect(R"({"bits":[4],"k":{"4":[1,-2]},"v":{"4":[1,1]}})", {"k.4", "-2", ">= 0"});
  expect(R"({"bits":[4],"k":{"4":["a"]},"v":{"4":[1]}})", {"k.4", "number"});
  expect(R"({"bits":[4],"k":{"4":[1]},"v":{"4":[1]},"calibration":{"seed":"-1"}})",
         {"calibration.seed", "-1", "digits"});
  expect(
      R"({"bits":[4],"k":{"4":[1]},"v":{"4":[1]},"calibration":{"seed":"18446744073709551616"}})",
      {"calibration.seed", "2^64"});
  EXPECT_THROW(LoadSensitivity("/nonexistent/s.json"), IoError);
}

}  // namespace
}  // namespace pmkvq
