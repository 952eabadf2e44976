// PMKVQ_TARGET=SSE4 in the environment (empty: unset): the vector kernels of the whole process run
// on that instruction set instead of the best one that the processor has.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "hwy/highway.h"
#include "pmkvq/base/error.h"

namespace pmkvq {

// Instruction sets by their names, the best first.
struct ProcessTargets {
  std::vector<std::string> available;  // Compiled in, and this processor has them.
  std::string chosen;                  // What the kernels run on.
};

// Threads: not while kernels run.
inline ProcessTargets ListProcessTargets() {
  ProcessTargets targets;
  const int64_t in_use = hwy::SupportedTargets();
  hwy::SetSupportedTargetsForTest(0);  // Lifts a choice of UseTargetOfEnvironment.
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    targets.available.emplace_back(hwy::TargetName(target));
    if (targets.chosen.empty() && (target & in_use) != 0) targets.chosen = hwy::TargetName(target);
  }
  hwy::SetSupportedTargetsForTest(in_use);
  return targets;
}

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
