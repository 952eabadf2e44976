// The engine on a CUDA device with models of latent attention and mixtures of experts: random ones,
// of sizes that the device's kernels take.
#include <memory>
#include <vector>

#include "pmkvq/engine/engine.h"
#include "support/device_models.h"
#include "support/engine_fixture.h"
#include "support/gpu_test.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::MakeRequest;
using testing_support::RandomPrompt;
using testing_support::RunOne;
using testing_support::TempFolder;
using testing_support::TinyModel;
using testing_support::WithHeads;
using testing_support::WithLatents;

std::vector<TinyModel> Models() {
  return {WithLatents({.architecture = "DeepseekV2ForCausalLM",
                       .dtype = DType::kBF16,
                       .experts = 6,
                       .dense_layer = 0,
                       .shared_experts = 1}),
          WithLatents({.architecture = "DeepseekV3ForCausalLM", .query_rank = 48}),
          WithHeads({.architecture = "MixtralForCausalLM", .dtype = DType::kF16, .experts = 5}, 4,
                    2, 64)};
}

std::shared_ptr<const Model> Load(const TinyModel& tiny, DeviceId device) {
  const TempFolder folder;
  WriteTinyModel(tiny, MakeTinyWeights(tiny), folder);
  ModelOptions options;
  options.device = device;
  return Model::Load(folder.path(), options);
}

SpecEngineOptions Options(const std::string& spec, int64_t max_sequences) {
  SpecEngineOptions options;
  options.kv.spec = spec;
  options.max_sequences = max_sequences;
  options.max_len = 900;
  options.num_threads = 2;
  return options;
}

class LatentEngineOnCudaTest : public GpuTest {};

// Pages, widths and bytes do not depend on what is stored.
TEST_F(LatentEngineOnCudaTest, PagesAndBytesAreThoseOfTheCpu) {
  for (const TinyModel& tiny : Models()) {
    SCOPED_TRACE(tiny.architecture);
    const auto cuda_model = Load(tiny, kDevice);
    const auto cpu_model = Load(tiny, {});
    for (const std::string spec : {"fp16", "static-4", "pm-kvq"}) {
      SCOPED_TRACE(spec);
      SpecEngineOptions options = Options(spec, 3);
      // Of 16-bit pages a third of what 900 tokens take.
      if (spec == "pm-kvq") {
        options.kv.budget_bytes = cpu_model->kv_geometry().values() * 2 * 900 / 3;
      }
      Engine cuda = OpenEngine(cuda_model, nullptr, options);
      Engine cpu = OpenEngine(cpu_model, nullptr, options);
      std::vector<Request> requests;
      for (uint64_t i = 0; i < 3; ++i) {
        requests.push_back(MakeRequest(RandomPrompt(300 + 130 * static_cast<int64_t>(i), i, 200),
                                       150 + 20 * static_cast<int64_t>(i), i));
        requests.back().ignore_eos = true;
      }
      const std::vector<Completion> a = cuda.Generate(requests, nullptr, nullptr);
      const std::vector<Completion> b = cpu.Generate(requests, nullptr, nullptr);
      for (size_t i = 0; i < a.size(); ++i) {
        EXPECT_EQ(a[i].finish_reason, b[i].finish_reason);
        EXPECT_EQ(a[i].output_ids.size(), b[i].output_ids.size());
        EXPECT_EQ(a[i].kv.bytes, b[i].kv.bytes);
        EXPECT_EQ(a[i].kv.pages, b[i].kv.pages);
      }
    }
  }
}

TEST_F(LatentEngineOnCudaTest, ASeedGivesTheSameTokensBesideOtherRequests) {
  for (const TinyModel& tiny : Models()) {
    for (const int64_t max_sequences : {5, 20}) {  // Few ones have other products.
      SCOPED_TRACE(testing::Message() << tiny.architecture << ' ' << max_sequences);
      const auto model = Load(tiny, kDevice);
      const SpecEngineOptions options = Options("static-4", max_sequences);
      Request sampled = MakeRequest(RandomPrompt(200, 1, 200), 120, 4);
      sampled.sampling.temperature = 0.8;
      sampled.ignore_eos = true;
      Engine alone = OpenEngine(model, nullptr, options);
      const std::vector<int32_t> ids = RunOne(alone, sampled).output_ids;
      EXPECT_EQ(ids.size(), 120u);
      Engine together = OpenEngine(model, nullptr, options);
      std::vector<Request> requests;
      for (uint64_t i = 0; i < 9; ++i) {
        requests.push_back(MakeRequest(RandomPrompt(20 + 40 * static_cast<int64_t>(i), 50 + i, 200),
                                       20 + 20 * static_cast<int64_t>(i), 100 + i));
        requests.back().sampling.temperature = 1.0;
        requests.back().ignore_eos = true;
      }
      requests.insert(requests.begin() + 4, sampled);
      EXPECT_EQ(together.Generate(requests, nullptr, nullptr)[4].output_ids, ids);
    }
  }
}

}  // namespace
}  // namespace pmkvq
