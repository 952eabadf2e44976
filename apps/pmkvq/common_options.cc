#include "common_options.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <utility>

#include "pmkvq/base/byte_size.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/base/threads.h"
#include "pmkvq/io/file.h"
#include "pmkvq/methods/packed_spec.h"
#include "terminal.h"

namespace pmkvq::cli {
namespace {

// A budget that does not do what its user most likely wants: only pm-kvq steps down inside it.
void WarnOfUnusedBudget(const KvCommandOptions& options) {
  const std::string method = options.spec.substr(0, options.spec.find(':'));
  const std::vector<MethodInfo> methods = ListMethods();
  const auto info = std::find_if(methods.begin(), methods.end(), [&](const MethodInfo& candidate) {
    return candidate.name == method;
  });
  // Of unknown ones there will be an error.
  if (info == methods.end() || method == "pm-kvq") return;
  if (!options.budget.empty()) {
    PrintError(
        fmt::format("warning: --kv {} does not step down: output ends where --kv-budget is "
                    "reached; --kv pm-kvq steps down inside it",
                    method));
  } else if (!options.plan_path.empty()) {
    PrintError(fmt::format("warning: --kv {} takes {}; --kv pm-kvq steps down inside its budgets",
                           method,
                           info->is_simulated ? "nothing from --plan"
                                              : "the key scales of --plan only, not its budgets"));
  }
}

// "4.75" (MiB) or a size with its unit, "512KiB".
int64_t ParseMemoryBudget(const std::string& text) {
  const bool has_unit = text.find_first_not_of("0123456789.") != std::string::npos;
  const int64_t bytes = ParseByteSize(has_unit ? text : text + "MiB", "--memory-budget");
  if (bytes == 0) {
    throw InvalidInput("--memory-budget",
                       fmt::format("found '{}', expected more than 0 bytes", text));
  }
  return bytes;
}

}  // namespace

CLI::Option* AddRecipe(CLI::App& command, std::function<void(const std::string&)> use) {
  std::string help = "a named SPEC of --kv:";
  std::vector<std::string> names;
  for (const KvRecipe& recipe : KvRecipes()) {
    help += fmt::format("\n  {}: {}, {}", recipe.name, recipe.spec, recipe.description);
    names.emplace_back(recipe.name);
  }
  const auto find = [use = std::move(use)](const std::string& name) {
    for (const KvRecipe& recipe : KvRecipes()) {
      if (name == recipe.name) use(recipe.spec);
    }
  };
  return command.add_option_function<std::string>("--recipe", find, help)
      ->check(CLI::IsMember(names))
      ->group("KV cache");
}

void KvCommandOptions::Register(CLI::App& command) {
  std::string methods = "cache method, NAME[:key=value[+key=value]] (docs/methods.md):";
  for (const MethodInfo& method : ListMethods())
    methods += "\n  " + method.name + ": " + method.description;
  const std::string group = "KV cache";
  CLI::Option* kv = command.add_option("--kv", spec, methods)->capture_default_str()->group(group);
  AddRecipe(command, [this](const std::string& recipe_spec) { spec = recipe_spec; })->excludes(kv);
  command
      .add_option(
          "--plan", plan_path,
          "plan file made by calibrate: budgets for --kv pm-kvq, key scales for it, fp16 and "
          "static-b")
      ->group(group);
  command
      .add_option("--kv-budget", budget,
                  "bytes for one sequence, all blocks: 6MiB, 512k, ... (with --kv pm-kvq, "
                  "instead of the plan's total)")
      ->group(group);
  command.add_option("--policy", policy, "what is halved when the budget is reached")
      ->check(CLI::IsMember({"layer-budget", "oldest-first"}))
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--n-sink-token", sink_tokens,
                  "first tokens that stay at 16 bit (default: the plan's, or 1)")
      ->check(CLI::NonNegativeNumber)
      ->group(group);
  command
      .add_option("--n-window-token", window_tokens,
                  "newest tokens at 16 bit, a multiple of 128 (default: the plan's, or 128)")
      ->check(CLI::NonNegativeNumber)
      ->group(group);
  command.add_option("--n-init-kv-bits", init_kv_bits, "width at which pm-kvq starts")
      ->check(CLI::IsMember({16, 8, 4, 2}))
      ->capture_default_str()
      ->group(group);
  command.add_option("--kv-dtype", kv_dtype, "type of what is not quantised")
      ->check(CLI::IsMember({"f16", "bf16", "f32"}))
      ->capture_default_str()
      ->group(group);
  command
      .add_flag("--reference-accounting", reference_accounting,
                "count payload bytes only, as the Python reference does")
      ->group(group);
  command
      .add_option("--attention", attention,
                  "how new tokens attend to quantised pages: accurate (floats) or fast (16-bit "
                  "integers)")
      ->check(CLI::IsMember({"accurate", "fast"}))
      ->capture_default_str()
      ->group(group);
  command.add_option("--max-len", max_len, "longest sequence, prompt and output (0: the model's)")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->group(group);
  command.add_option("--chunk", chunk, "prompt tokens per prefill step")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->group(group);
  command.add_option("--threads", threads, "worker threads (0: all processors)")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
}

EngineOptions KvCommandOptions::Resolve(int64_t max_sequences) const {
  EngineOptions options;
  options.kv.spec = spec;
  if (!plan_path.empty()) {
    options.kv.plan = std::make_shared<const Plan>(LoadPlan(plan_path));
    options.kv.plan_path = plan_path;
  }
  if (!budget.empty()) {
    options.kv.budget_bytes = ParseByteSize(budget, "--kv-budget");
    if (options.kv.budget_bytes == 0) {
      throw InvalidInput("--kv-budget", "found 0, expected a size like 6MiB");
    }
  }
  options.kv.policy = ParsePolicyKind(policy);
  options.kv.sink_tokens = sink_tokens;
  options.kv.window_tokens = window_tokens;
  options.kv.init_kv_bits = init_kv_bits;
  options.kv.kv_dtype = ParseKvDtype(kv_dtype);
  options.kv.reference_accounting = reference_accounting;
  options.kv.attention = ParseAttentionMode(attention);
  options.kv = ApplySpecKeys(options.kv);
  options.max_sequences = max_sequences;
  options.max_len = max_len;
  options.chunk = chunk;
  options.num_threads = ResolveThreads(threads);
  WarnOfUnusedBudget(*this);
  return options;
}

void SampleCommandOptions::Register(CLI::App& command) {
  const std::string group = "Calibration data";
  command
      .add_option("--dataset", samples.dataset,
                  "calibration texts: .jsonl (text or input_ids) or .txt")
      ->required()
      ->group(group);
  command.add_option("--pack", pack, "concat: cut the joined texts; single: one text per sample")
      ->check(CLI::IsMember({"concat", "single"}))
      ->capture_default_str()
      ->group(group);
  command.add_option("--n-samples", samples.num_samples, "sequences to use")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->group(group);
  command.add_option("--seq-len", samples.seq_len, "tokens per sequence")
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 24))
      ->capture_default_str()
      ->group(group);
  command
      .add_option(
          "--effective-len", samples.effective_len,
          "length that positions are stretched to, a multiple of --seq-len (0: not stretched)")
      ->check(CLI::NonNegativeNumber)
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
                  "for one sequence, all blocks: MiB, or a size with its unit (512KiB)")
      ->required()
      ->group(group);
  command.add_option("--fbit-choices", fbit_choices, "final widths to choose from")
      ->capture_default_str()
      ->group(group);
  command.add_option("--max-len", allocation.max_len, "tokens that must fit")
      ->check(CLI::PositiveNumber)
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
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--n-window-token", allocation.cache.window_tokens,
                  "newest tokens at 16 bit, a multiple of 128")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->group(group);
  command.add_option("--kv-dtype", kv_dtype, "type of what is not quantised, and of metadata")
      ->check(CLI::IsMember({"f16", "bf16", "f32"}))
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
  resolved.fbit_choices.clear();
  for (const int32_t bits : ParseIds(fbit_choices, "--fbit-choices")) {
    if (bits != 16 && bits != 8 && bits != 4 && bits != 2) {
      throw InvalidInput("--fbit-choices",
                         fmt::format("found {}, expected widths out of 16, 8, 4, 2", bits));
    }
    resolved.fbit_choices.push_back(bits);
  }
  if (resolved.fbit_choices.empty()) {
    throw InvalidInput("--fbit-choices", "found none, expected widths out of 16, 8, 4, 2");
  }
  resolved.cache.float_type = ParseKvDtype(kv_dtype);
  return resolved;
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
    text += fmt::format("calibrated on {} samples of {} tokens from {} ({}), positions {}\n",
                        plan.record.num_samples, plan.record.seq_len, plan.record.dataset,
                        plan.record.pack,
                        plan.record.effective_len == plan.record.seq_len
                            ? "as they are"
                            : fmt::format("stretched to {}", plan.record.effective_len));
  }
  if (plan.mirrored) text += "allocated by mirrored sensitivities, for comparison only\n";
  text += FormatAllocation({plan.k_bits, plan.v_bits, plan.budget_bytes, 0, 0});
  int64_t total = 0;
  for (const int64_t bytes : plan.budget_bytes) total += bytes;
  text +=
      fmt::format("budget {} for one sequence of {} tokens, {:.3g} effective bits, key scales {}\n",
                  FormatByteSize(total), plan.max_len,
                  EffectiveBits(plan.geometry, total / plan.geometry.num_layers, plan.max_len),
                  plan.key_scales.empty() ? "none" : "yes");
  return text;
}

int ResolveThreads(int threads) { return threads > 0 ? threads : DefaultThreads(); }

std::vector<int32_t> ParseIds(const std::string& text, const std::string& what) {
  std::vector<int32_t> ids;
  const char* p = text.data();
  const char* const end = p + text.size();
  const auto is_separator = [](char c) {
    return c == ',' || c == ' ' || c == '\n' || c == '\r' || c == '\t';
  };
  while (p != end) {
    if (is_separator(*p)) {
      ++p;
      continue;
    }
    CancelPoint();
    int32_t id = 0;
    const auto [next, error] = std::from_chars(p, end, id);
    if (error != std::errc() || (next != end && !is_separator(*next))) {
      const char* item_end = p;
      while (item_end != end && !is_separator(*item_end)) ++item_end;
      throw InvalidInput(what, fmt::format("'{}' is not a token id; expected integers separated by "
                                           "commas or spaces",
                                           std::string_view(p, static_cast<size_t>(item_end - p))));
    }
    ids.push_back(id);
    p = next;
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

void CheckPlan(const EngineOptions& engine, const Model& model) {
  if (engine.kv.plan == nullptr) return;
  CheckPlanMatches(*engine.kv.plan, model.checkpoint().Identity(), engine.kv.plan_path);
}

std::shared_ptr<const Tokenizer> LoadTokenizerIfPresent(const std::string& model) {
  if (!FileExists(JoinPath(model, "tokenizer.json"))) return nullptr;
  return Tokenizer::Load(model);
}

void CheckWritable(const std::string& path) {
  if (path.empty() || path == "-") return;
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    throw IoError(path, "is a folder, expected a file to write");
  }
  // A file is replaced in its folder; a device or a pipe is written in place.
  const bool in_place =
      std::filesystem::exists(path, error) && !std::filesystem::is_regular_file(path, error);
  const std::string parent = std::filesystem::path(path).parent_path();
  const std::string& target = in_place ? path : parent;
  if (access(target.empty() ? "." : target.c_str(), W_OK) != 0) {
    throw IoError(path, fmt::format("cannot write: {}", std::strerror(errno)));
  }
}

void CheckFileName(const std::string& path, const std::string& option) {
  if (path == "-") throw InvalidInput(option, "found '-', expected the name of a file");
}

void CheckUtf8(const std::string& text, const std::string& source) {
  const size_t invalid = FindInvalidUtf8(text);
  if (invalid == std::string::npos) return;
  throw InvalidInput(source, fmt::format("found byte 0x{:02x} at offset {}, expected UTF-8 text",
                                         static_cast<unsigned char>(text[invalid]), invalid));
}

void WriteJson(const std::string& path, const std::string& json) {
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
