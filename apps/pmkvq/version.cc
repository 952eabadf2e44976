#include "version.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdlib>
#include <vector>

#include "pmkvq/base/threads.h"
#include "pmkvq/io/json.h"
#include "pmkvq/kernels/gemm/device_codes_layout.h"
#include "pmkvq/kernels/process_target.h"
#include "pmkvq/tensor/device/device_info.h"
#include "pmkvq/tensor/weight_format.h"

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

// What this build has beyond the least one.
std::vector<std::string> Features() {
  std::vector<std::string> features;
  if (CudaVersionText() != "none") features.emplace_back("cuda");
#ifdef PMKVQ_WITH_MPI
  features.emplace_back("mpi");
#endif
  features.emplace_back("gguf");
  features.emplace_back("sentencepiece");
  features.emplace_back("tls");
  return features;
}

// Formats of weights that products read as they are stored, on the CPU or on a device.
std::vector<std::string> WeightsAsStored(bool on_device) {
  std::vector<std::string> names;
  for (size_t i = 0; i < kNumWeightFormats; ++i) {
    const auto format = static_cast<WeightFormat>(i);
    const bool is_plain = LayoutOf(format).block_values == 1;
    if (on_device && !is_plain && !HasDeviceCodes(format)) continue;
    names.emplace_back(format == WeightFormat::kQ8 ? "q8" : NameOf(format));
  }
  return names;
}

std::string HighwayVersion() { return fmt::format("{}.{}.{}", HWY_MAJOR, HWY_MINOR, HWY_PATCH); }

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
  line("weights", fmt::format("{}", fmt::join(WeightsAsStored(false), ", ")));
  if (CudaVersionText() != "none") {
    line("weights on CUDA",
         fmt::format("{}; others become q8", fmt::join(WeightsAsStored(true), ", ")));
  }
  line("features",
       fmt::format("{}; cache 16, 8, 4, 2 bits; Highway {}, OpenBLAS {}{}",
                   fmt::join(Features(), ", "), HighwayVersion(), PMKVQ_OPENBLAS_VERSION,
                   std::string(PMKVQ_SANITIZERS).empty()
                       ? ""
                       : fmt::format("; sanitizers {}", PMKVQ_SANITIZERS)));
  return text;
}

std::string VersionJson() {
  const ProcessTargets targets = ListProcessTargets();
  const std::string commit = kCommit;
  const bool has_changes = commit.ends_with('+');
  JsonWriter json;
  const auto list = [&](const char* name, const std::vector<std::string>& values) {
    json.Key(name).BeginArray();
    for (const std::string& value : values) json.String(value);
    json.EndArray();
  };
  json.BeginObject().Key("version").String(PMKVQ_VERSION);
  json.Key("commit").String(has_changes ? commit.substr(0, commit.size() - 1) : commit);
  json.Key("has_changes").Bool(has_changes);
  json.Key("compiler").String(kCompiler).Key("build_type").String(PMKVQ_BUILD_TYPE);
  list("instruction_sets", targets.available);
  json.Key("in_use").String(targets.chosen);
  json.Key("cuda").String(CudaVersionText());
  json.Key("threads").Int(DefaultThreads());
  list("weights", WeightsAsStored(false));
  if (CudaVersionText() != "none") list("weights_on_cuda", WeightsAsStored(true));
  list("features", Features());
  json.Key("libraries").BeginObject();
  json.Key("highway").String(HighwayVersion());
  json.Key("openblas").String(PMKVQ_OPENBLAS_VERSION);
  json.Key("fmt").String(
      fmt::format("{}.{}.{}", FMT_VERSION / 10000, FMT_VERSION / 100 % 100, FMT_VERSION % 100));
  json.EndObject();
  json.Key("sanitizers").String(PMKVQ_SANITIZERS).EndObject();
  return json.text() + "\n";
}

}  // namespace pmkvq::cli
