// What the registry does for all methods with a calibration: the key from=, CalibrateMethod.
#include <gtest/gtest.h>

#include <map>

#include "pmkvq/base/error.h"
#include "pmkvq/research/methods/registry.h"
#include "support/calibration_support.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::CancelAfter;
using testing_support::ExpectError;
using testing_support::RandomSamples;
using testing_support::TempFolder;
using testing_support::TinyFolder;
using testing_support::TinyModel;

class MethodCalibration : public testing::Test {
 protected:
  MethodCalibration() {
    calibration_.model = model_.get();
    calibration_.samples = &samples_;
  }
  MethodData Calibrate(const std::string& spec) const {
    return CalibrateMethod(spec, DType::kF16, calibration_, record_);
  }
  // Makes a store with the given file; `checkpoint` may be null.
  void Use(const std::string& method, const UniformKvGeometry& geometry,
           const Checkpoint* checkpoint) const {
    KvOptions options;
    options.spec = method + ":from=" + path_;
    MakeKvStore(options, {geometry, 1, 100, 1, &model_->rope(), checkpoint});
  }

  const TinyModel tiny_;
  const TinyFolder folder_{tiny_};
  const std::shared_ptr<const Model> model_ = folder_.Load();
  const Samples samples_ = RandomSamples(tiny_.vocab, {20, 20, 20}, 7);
  const CalibrationRecord record_{"texts", "concat", 3, 20, 20, 42};
  const TempFolder files_;
  const std::string path_ = files_.File("data.safetensors");
  CalibrationContext calibration_;
};

TEST_F(MethodCalibration, FileIsUsedForItsModelAndMethodOnly) {
  const MethodData data = Calibrate("rotatekv:bits=4");
  EXPECT_EQ(data.spec, "rotatekv:bits=4");
  EXPECT_EQ(data.record.num_samples, 3);
  SaveMethodData(data, path_);
  const UniformKvGeometry geometry = UniformOf(model_->kv_geometry());
  Use("rotatekv", geometry, nullptr);
  Use("rotatekv", geometry, &model_->checkpoint());

  UniformKvGeometry longer = geometry;
  ++longer.num_layers;
  ExpectError<InvalidInput>([&] { Use("rotatekv", longer, nullptr); },
                            {path_, "made for a model of 3 blocks", "expected 4 blocks",
                             "pmkvq calibrate --kv rotatekv makes one"});
  TinyModel other = tiny_;
  other.seed = 2;
  const TinyFolder other_folder(other);
  const std::shared_ptr<const Model> other_model = other_folder.Load();
  ExpectError<InvalidInput>([&] { Use("rotatekv", geometry, &other_model->checkpoint()); },
                            {path_, "made for model " + model_->checkpoint().Identity(),
                             "expected " + other_model->checkpoint().Identity()});
  MethodData foreign = Calibrate("rotatekv");
  foreign.method = "kivi";
  SaveMethodData(foreign, path_);
  ExpectError<InvalidInput>([&] { Use("rotatekv", geometry, nullptr); },
                            {path_, "made for method kivi, expected rotatekv"});
  ExpectError<InvalidInput>([&] { Use("kivi", geometry, nullptr); },
                            {"--kv", "unknown key 'from' for kivi"});
  ExpectError<IoError>(
      [&] {
        KvOptions options;
        options.spec = "rotatekv:from=" + files_.File("none");
        ResolveKvBudget(options, {geometry, 1, 100, 1, &model_->rope()});
      },
      {files_.File("none")});
}

TEST_F(MethodCalibration, NamesWhatCannotBeCalibrated) {
  ExpectError<InvalidInput>(
      [&] { Calibrate("rtn"); },
      {"--kv", "rtn has nothing to calibrate, expected one of pm-kvq, ", "rotatekv"});
  ExpectError<InvalidInput>([&] { Calibrate("fp16"); }, {"--kv", "fp16 has nothing to calibrate"});
  ExpectError<InvalidInput>([&] { Calibrate("rotatekv:from=x"); },
                            {"--kv", "'rotatekv:from=x': calibration makes the file of from="});
  ExpectError<InvalidInput>([&] { Calibrate("rotatekv:bit=2"); },
                            {"--kv", "unknown key 'bit' for rotatekv"});
}

TEST_F(MethodCalibration, ListSaysWhichMethodsAreCalibrated) {
  std::map<std::string, bool> is_calibrated;
  for (const MethodInfo& method : ListMethods()) is_calibrated[method.name] = method.is_calibrated;
  EXPECT_FALSE(is_calibrated.at("fp16"));
  EXPECT_FALSE(is_calibrated.at("kivi"));
  EXPECT_TRUE(is_calibrated.at("rotatekv"));
}

// Cancelled after each number of samples, and gone on with: bit for bit the same.
TEST_F(MethodCalibration, GoesOnWhereItWasInterrupted) {
  const MethodData whole = Calibrate("rotatekv");
  calibration_.checkpoint_path = files_.File("partial.json");
  for (const int64_t units : {0, 1, 2}) {
    CancelFlag cancelled{false};
    CancelAfter progress(units, &cancelled);
    calibration_.progress = &progress;
    calibration_.cancel = &cancelled;
    EXPECT_THROW(Calibrate("rotatekv"), Cancelled);
    EXPECT_EQ(files_.NumEntries(), 1u);
    calibration_.progress = nullptr;
    calibration_.cancel = nullptr;
    const MethodData resumed = Calibrate("rotatekv");
    EXPECT_EQ(files_.NumEntries(), 0u);
    for (const auto& [name, tensor] : whole.tensors) {
      const Tensor& again = resumed.tensors.at(name);
      for (int64_t i = 0; i < tensor.num_elements(); ++i) {
        ASSERT_EQ(again.As<float>()[i], tensor.As<float>()[i]) << name;
      }
    }
  }
}

}  // namespace
}  // namespace pmkvq
