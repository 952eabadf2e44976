#include "version.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "pmkvq/base/threads.h"
#include "pmkvq/kernels/process_target.h"
#include "pmkvq/tensor/device/device_info.h"

namespace pmkvq::cli {

// Written at build time (cmake/commit.cmake): "0a44a04be1", with "+" where files differ from it, or
// "".
extern const char* const kCommit;

namespace {

#if defined(__clang__)
constexpr char kCompiler[] = "clang " __clang_version__;
#else
constexpr char kCompiler[] = "g++ " __VERSION__;
#endif

std::string CommitText() {
  const std::string commit = kCommit;
  if (commit.empty()) return "unknown: built without a repository";
  return commit.back() == '+' ? commit.substr(0, commit.size() - 1) + " with changes" : commit;
}

}  // namespace

std::string ShortVersion() {
  const std::string commit = kCommit;
  return commit.empty() ? PMKVQ_VERSION : fmt::format("{} ({})", PMKVQ_VERSION, commit);
}

std::string VersionText() {
  const ProcessTargets targets = ListProcessTargets();
  std::string text = fmt::format("pmkvq {}\n", PMKVQ_VERSION);
  const auto line = [&](const char* name, const std::string& value) {
    text += fmt::format("{:<18}{}\n", name, value);
  };
  line("commit", CommitText());
  line("compiler", fmt::format("{}, {}", kCompiler, PMKVQ_BUILD_TYPE));
  line("instruction sets", fmt::format("{}", fmt::join(targets.available, ", ")));
  const char* const asked = std::getenv("PMKVQ_TARGET");
  line("in use",
       targets.chosen + (asked == nullptr || *asked == '\0' ? " (another one: PMKVQ_TARGET=NAME)"
                                                            : " (by PMKVQ_TARGET)"));
  line("CUDA", CudaVersionText());
  line("threads", fmt::format("{}", DefaultThreads()));
  line("features",
       fmt::format("weights BF16, F16, F32, q8; cache 16, 8, 4, 2 bits; Highway {}.{}.{}, "
                   "OpenBLAS {}{}",
                   HWY_MAJOR, HWY_MINOR, HWY_PATCH, PMKVQ_OPENBLAS_VERSION,
                   std::string(PMKVQ_SANITIZERS).empty()
                       ? ""
                       : fmt::format("; sanitizers {}", PMKVQ_SANITIZERS)));
  return text;
}

}  // namespace pmkvq::cli
