// The measuring steps of calibration with the model on a CUDA device beside those on the CPU.
#include <algorithm>
#include <cmath>
#include <memory>

#include "pmkvq/research/calib/calibration.h"
#include "support/calibration_support.h"
#include "support/device_models.h"
#include "support/gpu_test.h"

namespace pmkvq {
namespace {

using testing_support::CancelAfter;
using testing_support::MakeTinyWeights;
using testing_support::RandomSamples;
using testing_support::TempFolder;
using testing_support::TinyModel;
using testing_support::WithHeads;
using testing_support::WriteTinyModel;

TinyModel ModelOf(DType dtype) {
  return WithHeads({.architecture = "Qwen2ForCausalLM", .qkv_bias = true, .dtype = dtype}, 4, 2,
                   64);
}

std::shared_ptr<const Model> Load(const TinyModel& tiny, Device device) {
  TempFolder folder;
  WriteTinyModel(tiny, MakeTinyWeights(tiny), folder);
  ModelOptions options;
  options.device = {device, 0};
  return Model::Load(folder.path(), options);
}

void ExpectNear(const std::vector<double>& got, const std::vector<double>& expected,
                double tolerance, const char* what) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_NEAR(got[i], expected[i], tolerance * std::abs(expected[i])) << what << " " << i;
  }
}

class DeviceStepsTest : public GpuTest {
 protected:
  CalibrationContext ContextOf(const Model& model) {
    CalibrationContext context;
    context.model = &model;
    context.samples = &samples_;
    context.effective_len = 360;
    context.num_threads = 2;
    return context;
  }

  Samples samples_ = RandomSamples(200, {120, 120, 90, 33}, 7);
};

TEST_F(DeviceStepsTest, ResultsAreThoseOfTheCpu) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    SCOPED_TRACE(dtype == DType::kF32 ? "f32" : "bf16");
    const TinyModel tiny = ModelOf(dtype);
    const auto cpu = Load(tiny, Device::kCpu);
    const auto cuda = Load(tiny, Device::kCuda);
    const CalibrationContext on_cpu = ContextOf(*cpu);
    const CalibrationContext on_cuda = ContextOf(*cuda);

    const std::vector<Tensor> expected = MeasureMaxKeys(on_cpu);
    const SensitivityAndKeys both = MeasureSensitivityAndKeys(on_cuda);
    for (const std::vector<Tensor>& got : {MeasureMaxKeys(on_cuda), both.max_keys}) {
      ASSERT_EQ(got.size(), expected.size());
      for (size_t layer = 0; layer < got.size(); ++layer) {
        for (int64_t i = 0; i < expected[layer].num_elements(); ++i) {
          const float key = expected[layer].As<float>()[i];
          EXPECT_NEAR(got[layer].As<float>()[i], key, 1e-4 * key) << "block " << layer << " " << i;
        }
      }
    }

    for (const auto& [k_bits, v_bits] : {std::pair{4, 4}, {2, 2}, {8, 4}}) {
      RepScaleOptions options;
      options.k_bits = k_bits;
      options.v_bits = v_bits;
      options.grid = 5;
      const RepScales cpu_scales = SearchRepScales(on_cpu, expected, options);
      const RepScales cuda_scales = SearchRepScales(on_cuda, expected, options);
      for (size_t layer = 0; layer < expected.size(); ++layer) {
        // Codes at the edge of two steps may round the other way.
        ExpectNear(cuda_scales.loss[layer], cpu_scales.loss[layer], 0.02, "loss");
      }
    }

    const Sensitivity cpu_sensitivity = MeasureSensitivity(on_cpu);
    const Sensitivity cuda_sensitivity = MeasureSensitivity(on_cuda);
    EXPECT_EQ(both.sensitivity.k, cuda_sensitivity.k);
    EXPECT_EQ(both.sensitivity.v, cuda_sensitivity.v);
    for (size_t width = 0; width < cpu_sensitivity.k.size(); ++width) {
      ExpectNear(cuda_sensitivity.k[width], cpu_sensitivity.k[width], 0.01, "k");
      ExpectNear(cuda_sensitivity.v[width], cpu_sensitivity.v[width], 0.01, "v");
    }
  }
}

TEST_F(DeviceStepsTest, ACancelledStepGoesOnWhereItWas) {
  const auto cuda = Load(ModelOf(DType::kBF16), Device::kCuda);
  CalibrationContext context = ContextOf(*cuda);
  const Sensitivity whole = MeasureSensitivity(context);
  const TempFolder folder;
  CancelFlag cancel = false;
  CancelAfter progress(2, &cancel);
  context.checkpoint_path = folder.File("partial.json");
  context.progress = &progress;
  context.cancel = &cancel;
  EXPECT_THROW(MeasureSensitivity(context), Cancelled);
  cancel = false;
  CancelAfter rest(1000, &cancel);
  context.progress = &rest;
  const Sensitivity resumed = MeasureSensitivity(context);
  EXPECT_EQ(rest.resumed_at, 2);
  EXPECT_EQ(resumed.k, whole.k);
  EXPECT_EQ(resumed.v, whole.v);
}

}  // namespace
}  // namespace pmkvq
