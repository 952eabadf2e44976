// pmkvq calibrate: all steps in one go, one plan file.
#include <fmt/format.h>

#include "commands.h"
#include "common_options.h"
#include "pmkvq/calib/calibrate.h"
#include "pmkvq/io/file.h"
#include "terminal.h"

namespace pmkvq::cli {
namespace {

struct Options {
  std::string model;
  std::string plan;
  std::string from;
  SampleCommandOptions data;
  AllocationCommandOptions allocation;
  RepScaleOptions rep_scales;
  bool no_key_scales = false;
  int threads = 0;
};

void RunCalibrate(const Options& options) {
  if (!options.plan.ends_with(".json")) {
    throw InvalidInput("--plan", "found '" + options.plan + "', expected a name ending in .json");
  }
  CheckWritable(options.plan);
  Plan plan;
  if (!options.from.empty()) {
    plan = Reallocate(LoadPlan(options.from), options.allocation.Resolve());
    SavePlan(plan, options.plan);
  } else {
    const std::shared_ptr<Model> model = Model::Load(options.model);
    const auto tokenizer = LoadTokenizerIfPresent(options.model);
    StderrLog log;
    ProgressBar progress;
    CalibrateOptions calibrate;
    calibrate.samples = options.data.Resolve();
    calibrate.rep_scales = options.rep_scales;
    calibrate.search_key_scales = !options.no_key_scales;
    calibrate.allocation = options.allocation.Resolve();
    calibrate.num_threads = ResolveThreads(options.threads);
    calibrate.plan_path = options.plan;
    calibrate.progress = &progress;
    calibrate.log = &log;
    calibrate.cancel = InterruptFlag();
    try {
      plan = Calibrate(calibrate, *model, tokenizer.get());
    } catch (const Cancelled&) {
      throw Cancelled("calibrate",
                      "interrupted; what was measured is kept beside the plan, the same command "
                      "goes on from there");
    }
  }
  PrintError(FormatPlan(plan) + "wrote " + options.plan);
}

}  // namespace

void AddCalibrate(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "calibrate", "measure, search and allocate in one go, and write a plan; a rerun resumes");
  auto* model = command->add_option("--model", options->model, "model folder");
  command->add_option("--plan", options->plan, "plan file to write (.json)")->required();
  auto* from = command->add_option("--from", options->from,
                                   "take the measurements of this plan and only allocate anew");
  from->excludes(model);
  options->data.Register(*command);
  command->get_option("--dataset")->required(false);
  options->allocation.Register(*command);
  command->add_option("--k-bits", options->rep_scales.k_bits, "width of keys in the scale search")
      ->check(CLI::IsMember({8, 4, 2}))
      ->capture_default_str();
  command->add_option("--v-bits", options->rep_scales.v_bits, "width of values in the scale search")
      ->check(CLI::IsMember({8, 4, 2}))
      ->capture_default_str();
  command->add_flag("--no-key-scales", options->no_key_scales, "do not search key scales");
  command->add_option("--threads", options->threads, "worker threads (0: all processors)")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->callback([options] {
    if (options->from.empty() && options->model.empty()) {
      throw CLI::RequiredError("--model (or --from)");
    }
    if (options->from.empty() && options->data.samples.dataset.empty()) {
      throw CLI::RequiredError("--dataset");
    }
    RunCalibrate(*options);
  });
}

}  // namespace pmkvq::cli
