// --weights and --device: how the matrices of a model are kept, and where.
#pragma once

#include <CLI/CLI.hpp>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "pmkvq/model/model.h"
#include "ranks.h"

namespace pmkvq::cli {

// Bytes that the caches of a command will take on the device that the model is on.
using CacheBytes = std::function<int64_t(const Model&)>;

struct WeightCommandOptions {
  std::string weights = "as-stored";
  std::string device = "cpu";
  RankCommandOptions ranks;

  // This must outlive the parsing of `command`.
  void Register(CLI::App& command);
  // The same, and RankCommandOptions, for a command whose model ranks may share.
  void RegisterWithRanks(CLI::App& command);
  // --weights alone, for a command that runs no model.
  void RegisterWeights(CLI::App& command);
  WeightMode mode() const { return ParseWeightMode(weights); }
  // Model::Load with these weights, on this device. "auto": on the first CUDA device where the
  // build, the device and its memory allow that, with room for what `cache` says, else on the CPU;
  // says which, and why. `threads` as given to --threads.
  std::shared_ptr<const Model> Load(const std::string& folder, int threads,
                                    const CacheBytes& cache = nullptr) const;
};

// --device alone, for a command that reads weights as they are stored. `device` must outlive the
// parsing of `command`.
void RegisterDevice(CLI::App& command, std::string& device);

// Model::Load as commands do it: with progress on stderr, the files' warnings, and a line about
// weights that were converted. `threads` as given to --threads.
std::shared_ptr<const Model> LoadModel(const std::string& path,
                                       WeightMode mode = WeightMode::kAsStored, int threads = 0,
                                       const std::string& device = "cpu",
                                       const CacheBytes& cache = nullptr,
                                       const RankCommandOptions& ranks = {});

}  // namespace pmkvq::cli
