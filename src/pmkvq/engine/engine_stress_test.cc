// The stress of engines (support/engine_stress.h) on the CPU, with short sequences. Caches of one
// and of three threads have the same codes.
#include "support/engine_stress.h"

namespace pmkvq {
namespace {

using testing_support::CacheDriver;

class ThreadedDriver : public CacheDriver {
 public:
  explicit ThreadedDriver(CacheConfig config) : CacheDriver(WithThreads(std::move(config))) {}
  void Forward(const std::vector<Part>& parts, int64_t /*dead_rows*/ = 0) {
    CacheDriver::Forward(parts);
  }

 private:
  static CacheConfig WithThreads(CacheConfig config) {
    config.num_threads = 3;
    return config;
  }
};

TEST(EngineStressTest, ArrivalsCancelsAndHalvings) {
  testing_support::StressOptions options;
  options.seconds = 3.0;
  options.max_len = 2048;
  options.FromEnvironment();
  testing_support::EngineStress::Run<ThreadedDriver>(options);
}

}  // namespace
}  // namespace pmkvq
