// Runs the tests of vector kernels once for every instruction set that is compiled in and that
// this processor has.
//
// A suite is declared by PMKVQ_TARGET_SUITE and its tests by TEST_P; `.../SSE4` in a test's name is
// the target that it ran. vector_kernels_test.cc proves from the declarations that every file of
// vector kernels is tested on every target.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "hwy/highway.h"

namespace pmkvq::testing_support {

// Compiled in and supported by this processor, best first.
inline std::vector<int64_t> RunnableTargets() { return hwy::SupportedAndGeneratedTargets(); }

// Forces Highway's dispatch to the test's target for as long as the test runs.
class TargetTest : public testing::TestWithParam<int64_t> {
 protected:
  // The HWY_TARGET that the kernels under test run now.
  virtual int64_t ActiveTarget() const = 0;

  void SetUp() override {
    before_ = hwy::SupportedTargets();
    Force(GetParam());
    ASSERT_EQ(ActiveTarget(), GetParam()) << "another target runs than the forced one";
  }
  void TearDown() override { Force(before_); }

 private:
  static void Force(int64_t targets) {
    hwy::SetSupportedTargetsForTest(targets);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }

  int64_t before_ = 0;
};

// Which files of vector kernels a suite tests against their oracle.
struct TargetSuite {
  std::string name;
  std::vector<std::string> sources;  // Below src/pmkvq.
};

inline std::vector<TargetSuite>& TargetSuites() {
  static std::vector<TargetSuite> suites;
  return suites;
}

inline bool AddTargetSuite(TargetSuite suite) {
  TargetSuites().push_back(std::move(suite));
  return true;
}

inline std::string TargetNameOf(const testing::TestParamInfo<int64_t>& info) {
  return hwy::TargetName(info.param);
}

}  // namespace pmkvq::testing_support

// Declares the fixture `suite`. `active` returns the HWY_TARGET that its kernels run; the strings
// after it name the files whose kernels the suite compares with an oracle.
#define PMKVQ_TARGET_SUITE(suite, active, ...)                                               \
  class suite : public ::pmkvq::testing_support::TargetTest {                                \
    int64_t ActiveTarget() const override { return active(); }                               \
  };                                                                                         \
  INSTANTIATE_TEST_SUITE_P(EachTarget, suite,                                                \
                           ::testing::ValuesIn(::pmkvq::testing_support::RunnableTargets()), \
                           ::pmkvq::testing_support::TargetNameOf);                          \
  [[maybe_unused]] const bool k##suite##Added =                                              \
      ::pmkvq::testing_support::AddTargetSuite({#suite, {__VA_ARGS__}})
