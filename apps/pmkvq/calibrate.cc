// pmkvq calibrate: all steps in one go, one plan file. With --kv of a published method: that
// method's own calibration, one file for the key from= of its SPEC.
#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "calibration_run.h"
#include "commands.h"
#include "common_options.h"
#include "fan_out_options.h"
#include "file_options.h"
#include "help_format.h"
#include "kv_effects.h"
#include "leaders.h"
#include "option_values.h"
#include "pmkvq/base/byte_size.h"
#include "pmkvq/io/file.h"
#include "pmkvq/kv/spec/spec.h"
#include "pmkvq/research/calib/calibrate.h"
#include "pmkvq/research/methods/registry.h"
#include "terminal.h"
#include "weight_options.h"

namespace pmkvq::cli {
namespace {

constexpr char kPlanMethod[] = "pm-kvq";

struct Options {
  std::string model;
  WeightCommandOptions weights;
  std::string kv = kPlanMethod;
  std::string out;
  std::string plan;
  std::string from;
  SampleCommandOptions data;
  AllocationCommandOptions allocation;
  RepScaleOptions rep_scales;
  bool no_key_scales = false;
  int threads = 0;
  FanOutCommandOptions fan_out;
};

// Says how much of the budget stays unused, and warns of a length beyond the model's positions.
void WarnOfAllocation(const Plan& plan, const AllocationOptions& allocation) {
  int64_t used = 0;
  for (const int64_t bytes : plan.budget_bytes) used += bytes;
  const int64_t unused = allocation.memory_budget_bytes - used;
  const int widest =
      *std::max_element(allocation.fbit_choices.begin(), allocation.fbit_choices.end());
  const auto is_widest = [&](int bits) { return bits == widest; };
  if (widest < 16 && std::all_of(plan.k_bits.begin(), plan.k_bits.end(), is_widest) &&
      std::all_of(plan.v_bits.begin(), plan.v_bits.end(), is_widest) &&
      unused > allocation.memory_budget_bytes / 20) {
    PrintError(fmt::format(
        "note: {} of --memory-budget {} stay unused: all blocks have {} bits, the most of "
        "--fbit-choices; --fbit-choices {},{} allows more",
        FormatByteSize(unused), FormatByteSize(allocation.memory_budget_bytes), widest, 2 * widest,
        widest));
  }
}

// --max-len as given; else that of the plan of --from; else the model's positions, at most the
// paper's 32,768.
int64_t LengthOf(const Options& options, const CLI::App& command, const Plan* from,
                 const ModelConfig* model) {
  const int64_t asked = options.allocation.allocation.max_len;
  if (command.count("--max-len") > 0) {
    if (model != nullptr && asked > model->max_position_embeddings) {
      PrintError(fmt::format("warning: --max-len {} is more than the {} positions of {}", asked,
                             model->max_position_embeddings, options.model));
    }
    return asked;
  }
  return from != nullptr ? from->max_len : std::min(asked, model->max_position_embeddings);
}

void RunPlan(const Options& options, const CLI::App& command) {
  if (!options.plan.ends_with(".json")) {
    throw CLI::ValidationError("--plan",
                               "found '" + options.plan + "', expected a name ending in .json");
  }
  const bool replaces = FileExists(options.plan);
  Plan plan;
  AllocationOptions allocation = options.allocation.Resolve();
  if (!options.from.empty()) {
    const Plan from = LoadPlan(options.from);
    allocation.max_len = LengthOf(options, command, &from, nullptr);
    plan = Reallocate(from, allocation);
    SavePlan(plan, options.plan);
  } else {
    const SampleSharing sharing = {options.fan_out.shard, options.fan_out.Open(true)};
    const std::shared_ptr<const Model> model = options.weights.Load(options.model, options.threads);
    allocation.max_len = LengthOf(options, command, nullptr, &model->config());
    const auto tokenizer = options.data.tokenizer.LoadIfReadable(options.model, kNoText);
    StderrLog log;
    ProgressBar progress;
    CalibrateOptions calibrate;
    calibrate.samples = options.data.Resolve();
    calibrate.rep_scales = options.rep_scales;
    calibrate.search_key_scales = !options.no_key_scales;
    calibrate.allocation = allocation;
    calibrate.num_threads = ResolveThreads(options.threads);
    calibrate.plan_path = options.plan;
    calibrate.progress = &progress;
    calibrate.log = &log;
    calibrate.cancel = InterruptFlag();
    const SampleSharingScope scope(sharing);
    try {
      plan = Calibrate(calibrate, *model, tokenizer.get());
    } catch (const Cancelled&) {
      throw Cancelled("calibrate",
                      "interrupted; what was measured is kept beside the plan, the same command "
                      "goes on from there");
    }
  }
  WarnOfAllocation(plan, allocation);
  PrintError(FormatPlan(plan) + (replaces ? "replaced " : "wrote ") + options.plan);
}

void RunMethod(const Options& options) {
  if (const Communicator* const ranks = Leaders()) {
    throw CLI::ValidationError("--kv", fmt::format("found {} in a job of {} ranks, but its "
                                                   "calibration runs in one process; expected "
                                                   "pm-kvq, or no mpirun",
                                                   options.kv, ranks->size()));
  }
  CheckIsCalibrated(options.kv);
  const CalibrationRun run({.model = options.model,
                            .weights = options.weights.mode(),
                            .samples = options.data.Resolve(),
                            .tokenizer = options.data.tokenizer,
                            .threads = options.threads,
                            .checkpoint = options.out + ".partial.json",
                            .fingerprint = options.kv,
                            .sharing = {}});
  try {
    const MethodData data = CalibrateMethod(options.kv, ParseKvDtype(options.allocation.kv_dtype),
                                            run.context(), run.Record());
    SaveMethodData(data, options.out);
  } catch (const Cancelled&) {
    throw Cancelled("calibrate",
                    FileExists(run.context().checkpoint_path)
                        ? "interrupted; what was measured is kept beside --out, the same command "
                          "goes on from there"
                        : "interrupted; nothing was written");
  }
  PrintError(fmt::format("wrote {}\nuse it with --kv {}{}from={}", options.out, options.kv,
                         options.kv.find(':') == std::string::npos ? ":" : "+", options.out));
}

// Which of the two it is, and whether its options are there: they differ.
void RunCalibrate(const Options& options, const CLI::App& command) {
  const MethodSpec spec = ParseMethodSpec(options.kv);
  const bool makes_plan = spec.name == kPlanMethod;
  const auto require = [&](const char* name, bool given) {
    if (!given) throw CLI::RequiredError(name);
  };
  const auto refuse = [&](const char* name) {
    if (command.count(name) == 0) return;
    if (std::string_view(name) == "--device") {
      throw CLI::ValidationError(name, fmt::format("does not go with --kv {}, whose calibration "
                                                   "runs on the CPU",
                                                   options.kv));
    }
    if (std::string_view(name) == "--shard") {
      throw CLI::ValidationError(name, fmt::format("does not go with --kv {}, whose calibration "
                                                   "has no parts",
                                                   options.kv));
    }
    throw CLI::ValidationError(name, fmt::format("does not go with --kv {}, expected {}",
                                                 options.kv, makes_plan ? "--plan" : "--out"));
  };
  if (options.from.empty()) {
    require(makes_plan ? "--model (or --from)" : "--model", !options.model.empty());
    require("--dataset", !options.data.samples.dataset.empty());
  }
  if (makes_plan) {
    spec.Check({});
    refuse("--out");
    require("--plan", !options.plan.empty());
    require("--memory-budget", !options.allocation.memory_budget.empty());
    if (!options.from.empty()) {
      WarnWithoutEffect(command,
                        {"--dataset", "--pack", "--n-samples", "--seq-len", "--effective-len",
                         "--seed", "--weights", "--k-bits", "--v-bits", "--no-key-scales",
                         "--device", "--threads", "--shard"},
                        "--from takes the measurements of a plan");
    }
    RunPlan(options, command);
  } else {
    for (const char* name :
         {"--plan", "--from", "--memory-budget", "--fbit-choices", "--max-len", "--separate-kv",
          "--n-sink-token", "--n-window-token", "--rope-floor", "--reference-accounting",
          "--k-bits", "--v-bits", "--no-key-scales", "--device", "--shard"}) {
      refuse(name);
    }
    require("--out", !options.out.empty());
    RunMethod(options);
  }
}

std::string CalibratedMethods() {
  std::string names;
  for (const MethodInfo& method : ListMethods()) {
    if (method.is_calibrated) names += ", " + method.name;
  }
  return names;
}

}  // namespace

void AddCalibrate(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "calibrate",
      "measure, search and allocate in one go, and write a plan (or, with --kv of another method, "
      "what that method is calibrated with); a rerun resumes");
  auto* model =
      NamesFile(command->add_option("--model", options->model, "model folder or .gguf file"),
                FileKind::kModel);
  command
      ->add_option("--kv", options->kv,
                   "what is calibrated, NAME[:key=value[+key=value]]: pm-kvq makes a plan; a file "
                   "for the key from= is made for" +
                       CalibratedMethods().substr(1))
      ->type_name("SPEC")
      ->transform(KnownMethod())
      ->capture_default_str();
  NamesFile(
      command->add_option("--out", options->out, "with --kv of another method: file to write"),
      FileKind::kOutput);
  NamesFile(command->add_option("--plan", options->plan, "plan file to write (.json)"),
            FileKind::kOutput);
  auto* from =
      NamesFile(command->add_option("--from", options->from,
                                    "take the measurements of this plan and only allocate anew"),
                FileKind::kInput);
  from->excludes(model);
  options->data.Register(*command);
  options->weights.Register(*command);
  command->get_option("--dataset")->required(false);
  options->allocation.Register(*command);
  command->get_option("--memory-budget")->required(false);
  command->get_option("--max-len")
      ->description(
          "tokens that must fit (default: those of the model, at most 32768; with --from "
          "those of its plan)")
      ->default_str("");
  command->add_option("--k-bits", options->rep_scales.k_bits, "width of keys in the scale search")
      ->transform(OneOf({"8", "4", "2"}))
      ->capture_default_str();
  command->add_option("--v-bits", options->rep_scales.v_bits, "width of values in the scale search")
      ->transform(OneOf({"8", "4", "2"}))
      ->capture_default_str();
  command->add_flag("--no-key-scales", options->no_key_scales, "do not search key scales");
  options->fan_out.Register(*command, "samples", "--plan");
  AddThreads(*command, options->threads);
  AddExamples(
      *command,
      {"pmkvq calibrate --model models/longcot-10m --dataset models/longcot-10m/calibration.jsonl "
       "--n-samples 4 --seq-len 512 --memory-budget 5MiB --max-len 4096 --plan plan.json",
       "pmkvq calibrate --model MODEL --device cuda --dataset texts.jsonl --effective-len 8192 "
       "--memory-budget 400MiB --plan plan.json",
       "pmkvq calibrate --from models/longcot-10m/plan.json --separate-kv "
       "--memory-budget 5MiB --max-len 4096 --plan split.json"});
  command->callback([options, command] { RunAsPart([&] { RunCalibrate(*options, *command); }); });
}

}  // namespace pmkvq::cli
