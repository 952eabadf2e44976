// The option group of everything that draws tokens: run and eval.
#pragma once

#include <CLI/CLI.hpp>

#include <cstdint>
#include <optional>
#include <string>

#include "pmkvq/kernels/sampling/sampling.h"

namespace pmkvq::cli {

// --temperature, --top-k, --top-p, --min-p, --seed.
struct SamplingCommandOptions {
  std::optional<double> temperature;  // Empty: not given.
  std::optional<double> top_p;
  int64_t top_k = 0;
  double min_p = 0;
  uint64_t seed = 42;

  // `temperature_note` and `top_p_note`: the defaults as --help shows them. `seed_text`: the help
  // text of --seed.
  void Register(CLI::App& command, const std::string& temperature_note,
                const std::string& top_p_note, const std::string& seed_text);
  // What was given, else these defaults.
  SamplingParams Resolve(double default_temperature, double default_top_p) const;
  // Says on stderr which options change nothing because the choice is greedy.
  void WarnOfUnused(double default_temperature) const;

 private:
  const CLI::App* command_ = nullptr;
};

}  // namespace pmkvq::cli
