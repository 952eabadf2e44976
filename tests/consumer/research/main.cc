// The research library, installed: what a response says, and what a published method takes.
#include <cstdio>

#include "pmkvq/research/judge/judged_text.h"
#include "pmkvq/research/methods/registry.h"

int main() {
  const bool right = pmkvq::JudgeText("so \\boxed{\\frac{1}{2}}", "0.5").correct;
  bool has_kivi = false;
  for (const pmkvq::MethodInfo& method : pmkvq::ListMethods()) has_kivi |= method.name == "kivi";
  std::printf("right %d, kivi %d\n", right, has_kivi);
  return right && has_kivi ? 0 : 1;
}
