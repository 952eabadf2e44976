// Option groups that several subcommands share, and the settings that are made from them.
#pragma once

#include <CLI/CLI.hpp>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "pmkvq/research/calib/allocate.h"
#include "pmkvq/research/calib/samples.h"
#include "pmkvq/research/methods/spec_engine.h"
#include "tokenizer_options.h"

namespace pmkvq::cli {

// --kv, --recipe, --plan, --kv-budget, the options of CacheFields(), --chunk, --max-len, --threads.
struct KvCommandOptions {
  std::string spec = "fp16";
  std::string plan_path;
  std::string budget;
  CacheSettings settings;  // By the options of CacheFields(); what it holds first is their default.
  int64_t chunk = 512;
  int64_t max_len = 0;
  int threads = 0;

  // This must outlive the parsing of `command`.
  void Register(CLI::App& command);
  // Loads the plan and parses the values. Warns on stderr of options without effect, of budgets
  // beyond the machine's memory and of plans that are too short. `specs`: the methods of a command
  // that has several; empty: `spec`. Throws InvalidInput, IoError.
  SpecEngineOptions Resolve(int64_t max_sequences,
                            const std::vector<std::string>& specs = {}) const;
  // The same without warnings, for a look ahead.
  SpecEngineOptions Parse(int64_t max_sequences) const;
  // Says on stderr which plan would serve `kv` better (plan_hints.h). For commands that run
  // `model`, when nothing is wrong.
  void PrintPlanHint(const KvOptions& kv, const std::string& model) const;

 private:
  const CLI::App* command_ = nullptr;
};

// Help and validator of --kv, for commands that take several.
std::string KvHelp();
CLI::Validator KnownMethod();

// --recipe NAME: hands the SPEC of that name to `use`. Part of KvCommandOptions; a command that
// takes several --kv replaces it by one that adds to its list.
CLI::Option* AddRecipe(CLI::App& command, std::function<void(const std::string& spec)> use);

// --dataset, --tokenizer, --pack, --n-samples, --seq-len, --effective-len, --seed.
struct SampleCommandOptions {
  SampleOptions samples;
  TokenizerCommandOptions tokenizer;
  std::string pack = "concat";

  void Register(CLI::App& command);
  SampleOptions Resolve() const;
};

// --memory-budget, --fbit-choices, --max-len, --separate-kv, --mirrored, --n-sink-token,
// --n-window-token, --rope-floor, --kv-dtype, --reference-accounting.
struct AllocationCommandOptions {
  std::string memory_budget;  // MiB, or a size with its unit.
  std::string fbit_choices = "4,2";
  std::string kv_dtype = "f16";
  AllocationOptions allocation;

  void Register(CLI::App& command);
  // Geometry is left for the caller to fill in. Throws InvalidInput.
  AllocationOptions Resolve() const;
};

// Whether the file looks like a plan: a JSON object with "format". Throws IoError, InvalidInput for
// a file that is no JSON.
bool IsPlanFile(const std::string& path);

// One line: "block 0..5: 4 bits, 6..11: 2 bits" (K and V apart where they differ).
std::string FormatAllocation(const Allocation& allocation);

// A few lines about a plan: its calibration, widths, budget.
std::string FormatPlan(const Plan& plan);

int ResolveThreads(int threads);

// "1,2,3" (commas or spaces) to ids. Throws InvalidInput naming the bad item.
std::vector<int32_t> ParseIds(const std::string& text, const std::string& what);

// Throws InvalidInput naming `what` for an empty prompt, an id out of [0, V), or more tokens than
// the model has positions.
void CheckPrompt(const std::vector<int32_t>& ids, const ModelConfig& config,
                 const std::string& what);

// Throws InvalidInput when the options name a plan of another model.
void CheckPlan(const SpecEngineOptions& engine, const Model& model);

// Writes `json` to FILE, or to stdout for "-"; nothing for "".
void WriteJson(const std::string& path, const std::string& json);

// All of standard input.
std::string ReadStdin();

// "16:4 8:20 2:96"; widths without pages are left out, "none" for no pages.
std::string FormatPages(const PagesPerWidth& pages);

}  // namespace pmkvq::cli
