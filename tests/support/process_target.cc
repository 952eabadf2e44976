// Linked into the test programs: PMKVQ_TARGET=SSE4 runs the vector kernels of a whole test program
// on that instruction set. Suites of support/target_suite.h still run on each target.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <string>

#include "hwy/highway.h"

namespace pmkvq::testing_support {
namespace {

class ProcessTarget : public testing::Environment {
 public:
  // When the tests are listed already: their names do not depend on it.
  void SetUp() override {
    const char* const wanted = std::getenv("PMKVQ_TARGET");
    if (wanted == nullptr) return;
    std::string names;
    for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
      names += std::string(" ") + hwy::TargetName(target);
      if (hwy::TargetName(target) != std::string(wanted)) continue;
      hwy::SetSupportedTargetsForTest(target);
      hwy::GetChosenTarget().Update(hwy::SupportedTargets());
      return;
    }
    FAIL() << "PMKVQ_TARGET: found " << wanted << ", expected one of" << names;
  }
};

[[maybe_unused]] const testing::Environment* const kProcessTarget =
    testing::AddGlobalTestEnvironment(new ProcessTarget);

}  // namespace
}  // namespace pmkvq::testing_support
