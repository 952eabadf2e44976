// For tests: runs a check once for every instruction set compiled in that this processor has.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>

#include "hwy/highway.h"

namespace pmkvq {

// Forces Highway's dispatch to each target in turn and calls check(). `active` returns the
// HWY_TARGET that the kernels under test run; it proves that the forced one is in effect.
template <class Active, class Check>
void ForEachTarget(const Active& active, const Check& check) {
  const auto targets = hwy::SupportedAndGeneratedTargets();
  ASSERT_FALSE(targets.empty());
  for (const int64_t target : targets) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    EXPECT_EQ(active(), target);
    check();
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace pmkvq
