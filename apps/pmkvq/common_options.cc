#include "common_options.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <limits>
#include <utility>

#include "file_options.h"
#include "kv_effects.h"
#include "option_values.h"
#include "plan_hints.h"
#include "pmkvq/base/byte_size.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/base/nearest_name.h"
#include "pmkvq/base/threads.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/json.h"
#include "pmkvq/kv/spec/packed_spec.h"
#include "pmkvq/research/methods/registry.h"
#include "terminal.h"

namespace pmkvq::cli {
std::string KvHelp() {
  std::string names;
  for (const MethodInfo& method : ListMethods()) names += ", " + method.name;
  return fmt::format(
      "cache method, NAME[:key=value[+key=value]]: {}; pmkvq methods says what they "
      "are and take",
      names.substr(2));
}

CLI::Validator KnownMethod() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        std::vector<std::string> names;
        for (const MethodInfo& method : ListMethods()) names.push_back(method.name);
        const std::string name = text.substr(0, text.find(':'));
        if (std::find(names.begin(), names.end(), name) != names.end()) return "";
        const std::string guess = DidYouMean(name, names);
        return fmt::format("unknown method '{}'", name) +
               (guess.empty() ? fmt::format(", expected one of {}", fmt::join(names, ", "))
                              : guess);
      },
      "", "method");
}

CLI::Option* AddRecipe(CLI::App& command, std::function<void(const std::string&)> use) {
  std::string help = "a named SPEC of --kv:";
  std::vector<std::string> names;
  for (const KvRecipe& recipe : KvRecipes()) {
    help += fmt::format("{} {} ({})", names.empty() ? "" : ",", recipe.name, recipe.spec);
    names.emplace_back(recipe.name);
  }
  const auto find = [use = std::move(use)](const std::string& name) {
    for (const KvRecipe& recipe : KvRecipes()) {
      if (name == recipe.name) use(recipe.spec);
    }
  };
  return command.add_option_function<std::string>("--recipe", find, help)
      ->transform(OneOf(names))
      ->group("KV cache");
}

namespace {

// The option of one field, which sets it.
CLI::Option* AddField(CLI::App& command, const CacheField& field, CacheSettings& settings) {
  using Kind = CacheField::Kind;
  if (field.kind == Kind::kFlag) {
    return command.add_flag_callback(
        field.option, [&field, &settings] { field.set(settings, "true"); }, field.option_help);
  }
  CLI::Option* const option = command.add_option_function<std::string>(
      field.option, [&field, &settings](const std::string& text) { field.set(settings, text); },
      field.option_help);
  option->transform(field.kind == Kind::kInteger ? WholeNumber(0, kMostTokens)
                                                 : OneOf(field.choices));
  if (field.kind != Kind::kChoice) option->type_name("INT");
  const std::string value = field.text(settings);
  if (value != "default") option->default_str(value);
  return option;
}

}  // namespace

void KvCommandOptions::Register(CLI::App& command) {
  command_ = &command;
  const std::string group = "KV cache";
  CLI::Option* kv = command.add_option("--kv", spec, KvHelp())
                        ->type_name("SPEC")
                        ->transform(KnownMethod())
                        ->capture_default_str()
                        ->group(group);
  AddRecipe(command, [this](const std::string& recipe_spec) { spec = recipe_spec; })->excludes(kv);
  NamesFile(
      command
          .add_option(
              "--plan", plan_path,
              "plan file made by calibrate: budgets for --kv pm-kvq, key scales for it, fp16 and "
              "static-b")
          ->group(group),
      FileKind::kInput);
  command
      .add_option("--kv-budget", budget,
                  "what one sequence may take, all blocks: 6MiB, 512k; without a unit: bytes "
                  "(with --kv pm-kvq, instead of the plan's total)")
      ->type_name("SIZE")
      ->transform(KvBudgetSize())
      ->group(group);
  for (const CacheField& field : CacheFields()) {
    if (*field.option != '\0') AddField(command, field, settings)->group(group);
  }
  command.add_option("--max-len", max_len, "longest sequence, prompt and output (0: the model's)")
      ->transform(WholeNumber(0, kMostTokens))
      ->capture_default_str()
      ->group(group);
  command.add_option("--chunk", chunk, "prompt tokens per prefill step")
      ->transform(WholeNumber(1, kMostTokens))
      ->capture_default_str()
      ->group(group);
  AddThreads(command, threads);
}

void KvCommandOptions::PrintPlanHint(const KvOptions& kv, const std::string& model) const {
  const std::string hint = PlanHint(kv, model);
  if (!hint.empty()) PrintError(hint);
}

SpecEngineOptions KvCommandOptions::Parse(int64_t max_sequences) const {
  SpecEngineOptions options;
  static_cast<CacheSettings&>(options.kv) = settings;
  options.kv.spec = spec;
  if (!plan_path.empty()) {
    options.kv.plan = std::make_shared<const Plan>(LoadPlan(plan_path));
    options.kv.plan_path = plan_path;
  }
  if (!budget.empty()) options.kv.budget_bytes = ParseKvBudget(budget);
  options.kv = ApplySpecKeys(options.kv);
  options.max_sequences = max_sequences;
  options.max_len = max_len;
  options.chunk = chunk;
  options.num_threads = ResolveThreads(threads);
  return options;
}

SpecEngineOptions KvCommandOptions::Resolve(int64_t max_sequences,
                                            const std::vector<std::string>& specs) const {
  SpecEngineOptions options = Parse(max_sequences);
  if (specs.empty()) WarnOfUnusedBudget(*this);
  WarnOfUnusedKvOptions(*command_, specs.empty() ? std::vector<std::string>{spec} : specs);
  WarnOfMemory(options.kv.budget_bytes, max_sequences);
  WarnOfShortPlan(options);
  return options;
}

void SampleCommandOptions::Register(CLI::App& command) {
  const std::string group = "Calibration data";
  NamesFile(command
                .add_option("--dataset", samples.dataset,
                            "calibration texts: .jsonl (text or input_ids) or .txt")
                ->required()
                ->group(group),
            FileKind::kInput);
  tokenizer.Register(command, group);
  command.add_option("--pack", pack, "concat: cut the joined texts; single: one text per sample")
      ->transform(OneOf({"concat", "single"}))
      ->capture_default_str()
      ->group(group);
  command.add_option("--n-samples", samples.num_samples, "sequences to use")
      ->transform(WholeNumber(1))
      ->capture_default_str()
      ->group(group);
  command.add_option("--seq-len", samples.seq_len, "tokens per sequence")
      ->transform(WholeNumber(2, 1 << 24))
      ->capture_default_str()
      ->group(group);
  command
      .add_option(
          "--effective-len", samples.effective_len,
          "length that positions are stretched to, a multiple of --seq-len (0: not stretched)")
      ->transform(WholeNumber(0, kMostTokens))
      ->capture_default_str()
      ->group(group);
  command.add_option("--seed", samples.seed, "seed of the shuffle")
      ->capture_default_str()
      ->group(group);
}

SampleOptions SampleCommandOptions::Resolve() const {
  SampleOptions resolved = samples;
  resolved.packing = ParsePacking(pack);
  return resolved;
}

void AllocationCommandOptions::Register(CLI::App& command) {
  const std::string group = "Allocation";
  command
      .add_option("--memory-budget", memory_budget,
                  "for one sequence, all blocks: 4.75MiB, 512KiB; without a unit: MiB")
      ->type_name("SIZE")
      ->transform(MemoryBudgetSize())
      ->required()
      ->group(group);
  command
      .add_option("--fbit-choices", fbit_choices, "final widths to choose from, out of 16, 8, 4, 2")
      ->type_name("INT,...")
      ->capture_default_str()
      ->group(group);
  command.add_option("--max-len", allocation.max_len, "tokens that must fit")
      ->transform(WholeNumber(1, kMostTokens))
      ->capture_default_str()
      ->group(group);
  command.add_flag("--separate-kv", allocation.separate_kv, "K and V of a block may differ")
      ->group(group);
  command
      .add_flag("--mirrored", allocation.mirrored,
                "judge block i by the sensitivities of block L-1-i, as the reference's code does "
                "by accident (for comparison only)")
      ->group(group);
  command
      .add_option("--n-sink-token", allocation.cache.sink_tokens,
                  "first tokens that stay at 16 bit")
      ->transform(WholeNumber(0, kMostTokens))
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--n-window-token", allocation.cache.window_tokens,
                  "newest tokens at 16 bit, a multiple of 128")
      ->transform(WholeNumber(1, kMostTokens))
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--rope-floor", allocation.cache.rope_floor_bits,
                  "least width of the rope part of latents (latent attention)")
      ->transform(OneOf({"16", "8", "4", "2"}))
      ->capture_default_str()
      ->group(group);
  command.add_option("--kv-dtype", kv_dtype, "type of what is not quantised, and of metadata")
      ->transform(OneOf({"f16", "bf16", "f32"}))
      ->capture_default_str()
      ->group(group);
  command
      .add_flag("--reference-accounting", allocation.reference_accounting,
                "count payload bytes only, as the Python reference does")
      ->group(group);
}

AllocationOptions AllocationCommandOptions::Resolve() const {
  AllocationOptions resolved = allocation;
  resolved.memory_budget_bytes = ParseMemoryBudget(memory_budget);
  resolved.fbit_choices = ParseWidths(fbit_choices, "--fbit-choices");
  resolved.cache.float_type = ParseKvDtype(kv_dtype);
  return resolved;
}

bool IsPlanFile(const std::string& path) {
  const JsonValue json = JsonValue::ParseFile(path);
  return json.IsObject() && json.Has("format");
}

std::string FormatAllocation(const Allocation& allocation) {
  std::string text;
  for (size_t begin = 0; begin < allocation.k_bits.size();) {
    size_t end = begin + 1;
    while (end < allocation.k_bits.size() && allocation.k_bits[end] == allocation.k_bits[begin] &&
           allocation.v_bits[end] == allocation.v_bits[begin]) {
      ++end;
    }
    text += end - begin == 1 ? fmt::format("block {}: ", begin)
                             : fmt::format("blocks {} to {}: ", begin, end - 1);
    text += allocation.k_bits[begin] == allocation.v_bits[begin]
                ? fmt::format("{} bits\n", allocation.k_bits[begin])
                : fmt::format("K {} bits, V {} bits\n", allocation.k_bits[begin],
                              allocation.v_bits[begin]);
    begin = end;
  }
  return text;
}

std::string FormatPlan(const Plan& plan) {
  std::string text;
  if (plan.record.num_samples > 0) {
    text += fmt::format("calibrated on {} samples of {} tokens from {} ({}), positions {}{}\n",
                        plan.record.num_samples, plan.record.seq_len, plan.record.dataset,
                        plan.record.pack,
                        plan.record.effective_len == plan.record.seq_len
                            ? "as they are"
                            : fmt::format("stretched to {}", plan.record.effective_len),
                        plan.record.weights == CalibrationRecord::kStoredWeights
                            ? ""
                            : ", with --weights " + plan.record.weights);
  }
  if (plan.mirrored) text += "allocated by mirrored sensitivities, for comparison only\n";
  text += FormatAllocation({plan.k_bits, plan.v_bits, plan.budget_bytes, 0, 0});
  int64_t total = 0;
  for (const int64_t bytes : plan.budget_bytes) total += bytes;
  text +=
      fmt::format("budget {} for one sequence of {} tokens, {:.3g} effective bits, key scales {}\n",
                  FormatByteSize(total), plan.max_len,
                  EffectiveBits(plan.geometry.values(), total, plan.max_len),
                  plan.key_scales.empty() ? "none" : "yes");
  return text;
}

int ResolveThreads(int threads) { return threads > 0 ? threads : DefaultThreads(); }

std::vector<int32_t> ParseIds(const std::string& text, const std::string& what) {
  constexpr char kBlanks[] = " \t\r\n";
  constexpr int64_t kMostId = std::numeric_limits<int32_t>::max();
  std::vector<int32_t> ids;
  for (size_t begin = 0; begin < text.size();) {
    begin = std::min(text.find_first_not_of(kBlanks, begin), text.size());
    if (begin == text.size()) break;
    const size_t end = std::min(text.find_first_of(", \t\r\n", begin), text.size());
    int64_t id = -1;
    const auto [next, error] = std::from_chars(text.data() + begin, text.data() + end, id);
    if (error != std::errc() || next != text.data() + end || id < 0 || id > kMostId) {
      throw InvalidInput(what, fmt::format("found '{}', expected token ids: whole numbers from 0, "
                                           "commas or blanks between them",
                                           text.substr(begin, end - begin)));
    }
    CancelPoint();
    ids.push_back(static_cast<int32_t>(id));
    begin = std::min(text.find_first_not_of(kBlanks, end), text.size());
    if (begin == text.size() || text[begin] != ',') continue;
    ++begin;
    if (text.find_first_not_of(kBlanks, begin) == std::string::npos) {
      throw InvalidInput(what, "found nothing behind the last comma, expected a token id");
    }
  }
  return ids;
}

void CheckPrompt(const std::vector<int32_t>& ids, const ModelConfig& config,
                 const std::string& what) {
  if (ids.empty()) throw InvalidInput(what, "the prompt is empty; expected at least one token");
  for (const int32_t id : ids) {
    if (id < 0 || id >= config.vocab_size) {
      throw InvalidInput(what, fmt::format("token id {} is out of range; expected 0 to {}", id,
                                           config.vocab_size - 1));
    }
  }
  if (static_cast<int64_t>(ids.size()) > config.max_position_embeddings) {
    throw InvalidInput(what, fmt::format("the prompt has {} tokens; the model has {} positions",
                                         ids.size(), config.max_position_embeddings));
  }
}

void CheckPlan(const SpecEngineOptions& engine, const Model& model) {
  if (engine.kv.plan == nullptr) return;
  CheckPlanMatches(*engine.kv.plan, model.checkpoint().Identity(), engine.kv.plan_path);
}

void WriteJson(const std::string& path, const std::string& json) {
  if (OutputIsMuted()) return;
  if (path == "-") {
    Print(json + "\n");
  } else if (!path.empty()) {
    WriteFileAtomically(path, json + "\n");
  }
}

std::string ReadStdin() {
  std::string text{std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
  CancelPoint();  // A signal ends reading as the end of the input does.
  return text;
}

std::string FormatPages(const PagesPerWidth& pages) {
  std::string text;
  for (size_t i = 0; i < kWidths.size(); ++i) {
    if (pages[i] == 0) continue;
    text += fmt::format("{}{}:{}", text.empty() ? "" : " ", kWidths[i], pages[i]);
  }
  return text.empty() ? "none" : text;
}

}  // namespace pmkvq::cli
