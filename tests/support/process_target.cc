// Linked into the test programs: PMKVQ_TARGET=SSE4 runs the vector kernels of a whole test program
// on that instruction set. Suites of support/target_suite.h still run on each target.
#include "pmkvq/kernels/process_target.h"

#include <gtest/gtest.h>

namespace pmkvq::testing_support {
namespace {

class ProcessTarget : public testing::Environment {
 public:
  // When the tests are listed already: their names do not depend on it.
  void SetUp() override {
    try {
      UseTargetOfEnvironment();
    } catch (const InvalidInput& error) {
      FAIL() << error.what();
    }
  }
};

[[maybe_unused]] const testing::Environment* const kProcessTarget =
    testing::AddGlobalTestEnvironment(new ProcessTarget);

}  // namespace
}  // namespace pmkvq::testing_support
