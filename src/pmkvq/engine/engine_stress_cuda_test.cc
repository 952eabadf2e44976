// The stress of engines (support/engine_stress.h) on a device, for PMKVQ_STRESS_SECONDS, 5 unless
// set.
#include "support/device_history.h"
#include "support/engine_stress.h"
#include "support/gpu_test.h"

namespace pmkvq {
namespace {

class EngineStressOnCudaTest : public GpuTest {};

TEST_F(EngineStressOnCudaTest, ArrivalsCancelsAndHalvings) {
  testing_support::StressOptions options;
  options.device = kDevice;
  options.FromEnvironment();
  testing_support::EngineStress::Run<testing_support::DeviceDriver>(options);
}

}  // namespace
}  // namespace pmkvq
