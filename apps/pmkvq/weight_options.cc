#include "weight_options.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>

#include "common_options.h"
#include "option_values.h"
#include "pmkvq/base/byte_size.h"
#include "pmkvq/base/error.h"
#include "pmkvq/tensor/device/device_info.h"
#include "terminal.h"

namespace pmkvq::cli {
namespace {
constexpr char kAutoDevice[] = "auto";
}  // namespace

void WeightCommandOptions::Register(CLI::App& command) {
  RegisterWeights(command);
  RegisterDevice(command, device);
}

void WeightCommandOptions::RegisterWithRanks(CLI::App& command) {
  Register(command);
  ranks.Register(command);
}

void RegisterDevice(CLI::App& command, std::string& device) {
  const auto check = [](const std::string& found) -> std::string {
    if (found == kAutoDevice || ParseDevice(found)) return "";
    return fmt::format("found {}, expected cpu, cuda, cuda:N or auto (pmkvq devices lists them)",
                       found);
  };
  command
      .add_option("--device", device,
                  "what the model runs on: cpu, cuda (its first device), cuda:N, or auto: cuda "
                  "where this build, a device and its memory allow it, else cpu")
      ->check(CLI::Validator(check, "DEVICE", "device"))
      ->capture_default_str();
}

void WeightCommandOptions::RegisterWeights(CLI::App& command) {
  command
      .add_option(
          "--weights", weights,
          "as-stored, or codes of 8 or 4 bits in groups of 32, made while loading: q8 reads about "
          "half of BF16's bytes, q4 less than a third (what they cost: docs/numerics.md). What is "
          "quantised already stays, unless that saves a quarter")
      ->transform(OneOf(WeightModeNames()))
      ->capture_default_str();
}

std::shared_ptr<const Model> WeightCommandOptions::Load(const std::string& folder, int threads,
                                                        const CacheBytes& cache) const {
  return LoadModel(folder, mode(), threads, device, cache, ranks);
}

namespace {

std::shared_ptr<const Model> LoadOn(DeviceId device, const std::string& path,
                                    ModelOptions options) {
  options.device = device;
  return Model::Load(path, options);
}

// Why the caches do not fit beside the weights; empty: they do.
std::string ObstacleToCache(const Model& model, const CacheBytes& cache) {
  if (cache == nullptr) return "";
  const int64_t needed = cache(model);
  const auto free_bytes = static_cast<int64_t>(Query(model.device()).free_bytes);
  if (needed <= free_bytes) return "";
  return fmt::format(
      "{} has {} free beside the weights and the cache takes {}; less --kv-budget, --max-len or "
      "sequences at once would let it fit",
      NameOf(model.device()), FormatByteSize(free_bytes), FormatByteSize(needed));
}

// --device auto
std::shared_ptr<const Model> LoadWhereItFits(const std::string& path, const ModelOptions& options,
                                             const CacheBytes& cache) {
  constexpr DeviceId kFirst{Device::kCuda, 0};
  std::string reason;
  try {
    const DeviceList list = ListDevices();
    if (!list.devices.empty()) {
      std::shared_ptr<const Model> model = LoadOn(kFirst, path, options);
      reason = ObstacleToCache(*model, cache);
      if (reason.empty()) {
        PrintError(fmt::format("device: {}, {}", NameOf(kFirst), list.devices.front().name));
        return model;
      }
    } else {
      reason = list.problem;
    }
  } catch (const DeviceError& error) {
    reason = error.what();
  } catch (const Unsupported& error) {
    reason = error.what();
  }
  PrintError("device: cpu: " + reason);
  return LoadOn({}, path, options);
}

// Types without kernels on a device, which a user did not ask to have converted.
bool HasConvertedBlocks(const WeightConversion& conversion) {
  return std::any_of(conversion.types.begin(), conversion.types.end(), [](const std::string& type) {
    const std::optional<WeightFormat> format = WeightFormatNamed(type);
    return format.has_value() && IsBlockFormat(*format);
  });
}

// Of this process so far, mapped files included.
int64_t PeakMemoryBytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return int64_t{1024} * usage.ru_maxrss;
}

}  // namespace

std::shared_ptr<const Model> LoadModel(const std::string& path, WeightMode mode, int threads,
                                       const std::string& device, const CacheBytes& cache,
                                       const RankCommandOptions& ranks) {
  ProgressBar progress;
  const auto start = std::chrono::steady_clock::now();
  ModelOptions options{mode, ResolveThreads(threads), &progress};
  options.tp_slices = static_cast<int>(ranks.slices);
  options.ranks = Ranks::OfProcess().group();
  if (options.ranks != nullptr) {
    Ranks::OfProcess().CheckSharesModels();
    // While they load, ranks may wait for each other as long as the largest shard takes.
    options.ranks->WatchFor(std::chrono::seconds(0));
  }
  const std::shared_ptr<const Model> model =
      device == kAutoDevice ? LoadWhereItFits(path, options, cache)
                            : LoadOn(ParseDevice(device).value(), path, options);
  if (options.ranks != nullptr) options.ranks->WatchFor(std::chrono::seconds(ranks.timeout_s));
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  for (const std::string& warning : model->checkpoint().warnings()) StderrLog().Warning(warning);
  const WeightConversion& conversion = model->conversion();
  if (HasConvertedBlocks(conversion)) {
    PrintError(fmt::format(
        "weights: {} tensors of {} became q8 groups: {} for {}, in {:.1f} s, peak memory {}",
        conversion.num_tensors, fmt::join(conversion.types, ", "), FormatByteSize(conversion.bytes),
        FormatByteSize(conversion.stored_bytes), seconds.count(),
        FormatByteSize(PeakMemoryBytes())));
  }
  return model;
}

}  // namespace pmkvq::cli
