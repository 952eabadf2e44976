// pmkvq allocate: bit width and byte budget per block from sensitivities.
#include <fmt/format.h>

#include "commands.h"
#include "common_options.h"
#include "file_options.h"
#include "help_format.h"
#include "option_values.h"
#include "pmkvq/base/byte_size.h"
#include "pmkvq/io/json.h"
#include "pmkvq/model/model_size.h"
#include "pmkvq/research/calib/allocate.h"
#include "pmkvq/research/calib/sensitivity_file.h"
#include "terminal.h"

namespace pmkvq::cli {
namespace {

struct Options {
  std::string model;
  int64_t kv_dim = 0;
  std::string sensitivity;
  AllocationCommandOptions allocation;
  std::string json;
};

// Refuses a plan with the right command: both are JSON files of calibration, so people mix them up.
SensitivityFile LoadSensitivityOnly(const std::string& path) {
  if (IsPlanFile(path)) {
    throw InvalidInput(path,
                       "is a plan, expected the file of pmkvq sensitivity --json; to allocate anew "
                       "from a plan: pmkvq calibrate --from " +
                           path);
  }
  return LoadSensitivity(path);
}

void AllocateBits(const Options& options) {
  AllocationOptions allocation = options.allocation.Resolve();
  const SensitivityFile file = LoadSensitivityOnly(options.sensitivity);
  KvGeometry& geometry = allocation.cache.geometry;
  if (!options.model.empty()) {
    geometry = KvGeometryOf(LoadModelConfig(options.model));
  } else {
    if (!allocation.reference_accounting) {
      throw InvalidInput("--kv-dim",
                         "alone it says nothing about metadata; expected --model, or "
                         "--reference-accounting, which counts payload only");
    }
    // Payload bytes depend on the product Hkv * D only.
    geometry = UniformKvGeometry{file.num_blocks, 1, 1, options.kv_dim};
  }
  const Allocation result = Allocate(file.sensitivity, allocation);

  JsonWriter json;
  json.BeginObject();
  if (allocation.separate_kv || HasLatents(geometry)) {
    json.Key("k_bits").Array(result.k_bits);
    json.Key("v_bits").Array(result.v_bits);
  } else {
    json.Key("bits").Array(result.k_bits);
  }
  json.Key("budget_bytes").Array(result.budget_bytes);
  json.Key("objective").Number(result.objective);
  json.Key("total_bytes").Int(result.total_bytes);
  json.Key("max_len").Int(allocation.max_len);
  json.Key("memory_budget_bytes").Int(allocation.memory_budget_bytes);
  json.Key("n_sink_token").Int(allocation.cache.sink_tokens);
  json.Key("n_window_token").Int(allocation.cache.window_tokens);
  json.Key("kv_dtype").String(options.allocation.kv_dtype);
  json.Key("reference_accounting").Bool(allocation.reference_accounting);
  json.Key("mirrored").Bool(allocation.mirrored);
  json.EndObject();
  WriteJson(options.json, json.text());
  if (options.json == "-") return;
  Print(FormatAllocation(result));
  Print(fmt::format("{} of {} for one sequence of {} tokens, objective {:.6g}\n",
                    FormatByteSize(result.total_bytes),
                    FormatByteSize(allocation.memory_budget_bytes), allocation.max_len,
                    result.objective));
}

}  // namespace

void AddAllocate(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("allocate", "choose bit widths per block under a memory budget, exactly");
  auto* model =
      NamesFile(command->add_option("--model", options->model, "model folder or .gguf file"),
                FileKind::kModel);
  command->add_option("--kv-dim", options->kv_dim, "KV heads x head_dim, instead of a model")
      ->transform(WholeNumber(1, 1 << 20))
      ->excludes(model);
  NamesFile(command
                ->add_option("--sensitivity", options->sensitivity,
                             "file made by pmkvq sensitivity --json")
                ->required(),
            FileKind::kInput);
  options->allocation.Register(*command);
  AddJson(*command, options->json, "write the result as JSON");
  AddExamples(*command, {"pmkvq allocate --model models/longcot-10m --sensitivity s.json "
                         "--memory-budget 5MiB --max-len 4096",
                         "pmkvq allocate --kv-dim 1024 --reference-accounting --sensitivity s.json "
                         "--memory-budget 1024 --json -"});
  command->parse_complete_callback([options] {
    if (options->model.empty() && options->kv_dim == 0) {
      throw CLI::RequiredError("--model or --kv-dim");
    }
  });
  command->callback([options] { AllocateBits(*options); });
}

}  // namespace pmkvq::cli
