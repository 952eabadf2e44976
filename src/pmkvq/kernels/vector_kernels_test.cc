// Proves that the tests leave out no vector kernel: every file that Highway compiles per target
// has an oracle suite (support/target_suite.h), and that suite has tests on every target that runs
// here.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "support/target_suite.h"

namespace pmkvq {
namespace {

using testing_support::RunnableTargets;
using testing_support::TargetSuite;
using testing_support::TargetSuites;

std::string ReadText(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  EXPECT_TRUE(file.good()) << path;
  return text.str();
}

// Sources below src/pmkvq, as "kernels/act/act.cc", with their text.
std::map<std::string, std::string> Sources() {
  const std::filesystem::path root = PMKVQ_SOURCE_DIR "/src/pmkvq";
  std::map<std::string, std::string> sources;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(root)) {
    const std::string extension = entry.path().extension();
    const std::string name = std::filesystem::relative(entry.path(), root);
    if ((extension != ".cc" && extension != ".h") || name.ends_with("_test.cc")) continue;
    sources[name] = ReadText(entry.path());
  }
  return sources;
}

// Files whose functions exist once per target.
std::set<std::string> VectorSources() {
  std::set<std::string> names;
  for (const auto& [name, text] : Sources()) {
    if (text.find("#define HWY_TARGET_INCLUDE ") != std::string::npos) names.insert(name);
  }
  return names;
}

// Names of targets by suite in whose tests they stand; disabled tests do not count.
std::map<std::string, std::set<std::string>> TestedTargets() {
  constexpr std::string_view kInstance = "EachTarget/";
  std::map<std::string, std::set<std::string>> targets;
  const testing::UnitTest& all = *testing::UnitTest::GetInstance();
  for (int s = 0; s < all.total_test_suite_count(); ++s) {
    const testing::TestSuite& suite = *all.GetTestSuite(s);
    const std::string suite_name = suite.name();
    if (!suite_name.starts_with(kInstance)) continue;
    for (int t = 0; t < suite.total_test_count(); ++t) {
      const std::string name = suite.GetTestInfo(t)->name();
      if (name.starts_with("DISABLED_")) continue;
      targets[suite_name.substr(kInstance.size())].insert(name.substr(name.rfind('/') + 1));
    }
  }
  return targets;
}

TEST(VectorKernels, EveryFileHasAnOracleSuite) {
  std::set<std::string> tested;
  for (const TargetSuite& suite : TargetSuites()) {
    tested.insert(suite.sources.begin(), suite.sources.end());
  }
  const std::set<std::string> compiled = VectorSources();
  EXPECT_GE(compiled.size(), 10u);
  EXPECT_EQ(compiled, tested) << "files of vector kernels, and files that suites say they test";
}

TEST(VectorKernels, EverySuiteHasTestsOnEveryTarget) {
  std::set<std::string> expected;
  for (const int64_t target : RunnableTargets()) expected.insert(hwy::TargetName(target));
  const auto tested = TestedTargets();
  EXPECT_FALSE(TargetSuites().empty());
  for (const TargetSuite& suite : TargetSuites()) {
    const auto found = tested.find(suite.name);
    ASSERT_NE(found, tested.end()) << suite.name;
    EXPECT_EQ(found->second, expected) << suite.name;
  }
}

// All files have the targets of the build, so that what one of them runs the others run too.
TEST(VectorKernels, NoFileChoosesItsOwnTargets) {
  for (const auto& [name, text] : Sources()) {
    for (const char* macro : {"HWY_DISABLED_TARGETS", "HWY_BROKEN_TARGETS", "HWY_COMPILE_ONLY_",
                              "HWY_COMPILE_ALL_ATTAINABLE", "HWY_BASELINE_TARGETS"}) {
      EXPECT_EQ(text.find(std::string("define ") + macro), std::string::npos) << name;
    }
  }
}

TEST(VectorKernels, TheTargetsOfTheArchitectureAreCompiled) {
#if HWY_ARCH_X86
  EXPECT_EQ(HWY_TARGETS, HWY_SCALAR | HWY_SSE4 | HWY_AVX2 | HWY_AVX3);
  const std::vector<int64_t> targets = RunnableTargets();
  EXPECT_NE(std::find(targets.begin(), targets.end(), HWY_SCALAR), targets.end());
#elif HWY_ARCH_ARM_A64
  EXPECT_EQ(HWY_TARGETS, HWY_NEON);  // Every such processor has it.
#endif
}

}  // namespace
}  // namespace pmkvq
