// PMKVQ_TARGET=SSE4 in the environment: the vector kernels of the whole process run on that
// instruction set instead of the best one that the processor has.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <string>

#include "hwy/highway.h"
#include "pmkvq/base/error.h"

namespace pmkvq {

// To be called before threads are started. Throws InvalidInput for a name that is not compiled in
// or that this processor does not have.
inline void UseTargetOfEnvironment() {
  const char* const wanted = std::getenv("PMKVQ_TARGET");
  if (wanted == nullptr || *wanted == '\0') return;  // An empty value means unset.
  std::string names;
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    const std::string name = hwy::TargetName(target);
    if (name == wanted) {
      hwy::SetSupportedTargetsForTest(target);
      hwy::GetChosenTarget().Update(hwy::SupportedTargets());
      return;
    }
    names += (names.empty() ? "" : ", ") + name;
  }
  throw InvalidInput("PMKVQ_TARGET",
                     std::string("found \"") + wanted + "\", expected one of " + names);
}

}  // namespace pmkvq
