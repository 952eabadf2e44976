// --weights: how the matrices of a model are kept in memory.
#pragma once

#include <CLI/CLI.hpp>

#include <memory>
#include <string>

#include "pmkvq/model/model.h"

namespace pmkvq::cli {

struct WeightCommandOptions {
  std::string weights = "as-stored";

  // This must outlive the parsing of `command`.
  void Register(CLI::App& command);
  WeightMode mode() const { return ParseWeightMode(weights); }
  // Model::Load with these weights. `threads` as given to --threads.
  std::shared_ptr<const Model> Load(const std::string& folder, int threads) const;
};

// Model::Load as commands do it: with progress on stderr, the files' warnings, and a line about
// weights that were converted. `threads` as given to --threads.
std::shared_ptr<const Model> LoadModel(const std::string& path,
                                       WeightMode mode = WeightMode::kAsStored, int threads = 0);

// For commands that measure the model as it is stored: --weights q8 is refused, with the reason.
void RefuseQuantizedWeights(CLI::App& command);

}  // namespace pmkvq::cli
