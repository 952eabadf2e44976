// What tests of published methods have in common: their block, a rule that is checked after every
// append, bytes by hand, and refused SPECs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pmkvq/base/error.h"
#include "support/expect_error.h"
#include "support/method_driver.h"
#include "support/scalar_quantizer.h"

namespace pmkvq::testing_support {

// K, or V, of the block of a MethodDriver(spec).
inline constexpr RowShape kMethodShape{2, 64};

template <class Rule>
struct RuleCase {
  const char* spec;
  Rule rule;  // The numbers of the SPEC, as the test's oracle wants them.
};

// Appends chunks of these sizes to a cache of the case's SPEC. After each one the stored rows are
// expected(rows that were given, number of tokens, rule).
template <class Rule>
void ExpectRule(const RuleCase<Rule>& rule_case, const std::vector<int64_t>& chunks,
                KeysAndValues (*expected)(const Rows&, int64_t, const Rule&)) {
  MethodDriver driver(rule_case.spec);
  ExpectAfterEachAppend(driver, chunks, 1e-5f, [&](const Rows& given, int64_t n) {
    return expected(given, n, rule_case.rule);
  });
}

// Bytes of the block once it holds `num_tokens` tokens.
inline int64_t BytesAfter(const std::string& spec, int64_t num_tokens) {
  MethodDriver driver(spec);
  driver.Append(num_tokens);
  return driver.BlockBytes();
}

// The SPEC is refused by a message that names --kv, the SPEC and `part`.
inline void ExpectRefused(const std::string& spec, const std::string& part) {
  ExpectError<InvalidInput>([&] { MethodDriver driver(spec); }, {"--kv", spec, part});
}

}  // namespace pmkvq::testing_support
