#include "pmkvq/research/compare/compare_files.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <limits>
#include <set>

#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/json.h"
#include "pmkvq/kv/spec/spec.h"
#include "pmkvq/research/compare/compare_list.h"
#include "pmkvq/research/eval/run_parts.h"
#include "pmkvq/research/methods/registry.h"

namespace pmkvq {
namespace {

// What has to be the same for a fair comparison: problems, seeds, sampling, limits.
constexpr const char* kSharedOptions[] = {"--data",        "--max-len", "--chat-template",
                                          "--temperature", "--top-k",   "--top-p",
                                          "--min-p",       "--seed",    "--max-tokens"};

std::string FindOption(const SavedRun& saved, const std::string& option) {
  for (const auto& [name, value] : saved.settings) {
    if (name == option) return value;
  }
  return "";
}

int64_t CountOption(const SavedRun& saved, const std::string& option) {
  const std::string text = FindOption(saved, option);
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0) {
    throw InvalidInput(JoinPath(saved.path, "run.json"),
                       fmt::format("options.{}: found '{}', expected a count", option, text));
  }
  return value;
}

SavedRun LoadRunFolder(const std::string& folder) {
  const std::string settings_path = JoinPath(folder, "run.json");
  const RunSettings settings = ParseRunSettings(ReadFile(settings_path), settings_path);
  SavedRun saved;
  saved.path = folder;
  saved.benchmark = settings.benchmark;
  saved.model = settings.model_identity;
  saved.settings = settings.options;
  saved.budget_bytes = CountOption(saved, "--kv-budget");
  saved.max_len = CountOption(saved, "--max-len");
  saved.run.method = settings.kv;
  saved.run.outcomes = OutcomesOf(ReadResponses(folder));
  return saved;
}

// The --json file of eval: one column per property.
SavedRun LoadSummary(const std::string& path) {
  const JsonValue json = JsonValue::ParseFile(path);
  if (!json.IsObject()) json.Fail("an object, a summary that eval wrote with --json");
  SavedRun saved;
  saved.path = path;
  saved.benchmark = json.Find("benchmark").AsString();
  saved.run.method = json.Find("kv").AsString();
  const JsonValue columns = json.Find("columns");
  if (!columns.IsObject()) columns.Fail("an object with one column per property of a response");
  const size_t rows = columns.Find("id").size();
  const auto column = [&](const std::string& name) {
    const JsonValue values = columns.Find(name);
    if (!values.IsArray() || values.size() != rows) {
      values.Fail(fmt::format("an array with one entry for each of the {} ids", rows));
    }
    return values;
  };
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  const JsonValue id = column("id");
  const JsonValue response = column("response");
  const JsonValue correct = column("correct");
  const JsonValue output_tokens = column("output_tokens");
  const JsonValue finish_reason = column("finish_reason");
  const JsonValue peak_bytes = column("peak_bytes");
  const bool has_level = columns.Has("level");
  const bool has_seconds = columns.Has("decode_seconds");
  const bool has_kept = columns.Has("kept_share");
  for (size_t i = 0; i < rows; ++i) {
    Outcome outcome;
    outcome.id = id.At(i).AsString();
    outcome.response = response.At(i).AsInt(0, kMost);
    outcome.correct = correct.At(i).AsBool();
    outcome.output_tokens = output_tokens.At(i).AsInt(0, kMost);
    outcome.finish_reason = finish_reason.At(i).AsString();
    outcome.peak_bytes = peak_bytes.At(i).AsInt(0, kMost);
    if (has_level) outcome.level = column("level").At(i).AsInt();
    if (has_kept) outcome.kept_share = column("kept_share").At(i).AsDouble();
    if (has_seconds) outcome.decode_seconds = column("decode_seconds").At(i).AsDouble();
    saved.run.outcomes.push_back(std::move(outcome));
  }
  return saved;
}

// The runs of a list: with responses where they were run, else with the reason that it gives.
void LoadListedRuns(const std::string& folder, const ComparisonList& list,
                    std::vector<SavedRun>& runs) {
  const std::set<std::string> problems(list.problems.begin(), list.problems.end());
  for (const ListedRun& listed : list.runs) {
    const std::string path = JoinPath(folder, RunFolder(listed.method, listed.budget_bytes));
    SavedRun saved;
    if (listed.is_run && FileExists(JoinPath(path, "run.json"))) saved = LoadRunFolder(path);
    saved.path = path;
    saved.benchmark = list.benchmark;
    saved.model = list.model;
    saved.budget_bytes = listed.budget_bytes;
    saved.against = list.against;
    saved.values_per_token = list.values_per_token;
    saved.run.method = listed.method;
    saved.run.needed_bytes = listed.needed_bytes;
    saved.run.needed_tokens = listed.needed_tokens;
    saved.run.num_expected = std::ssize(problems) * list.num_responses;
    std::erase_if(saved.run.outcomes, [&](const Outcome& outcome) {
      return !problems.contains(outcome.id) || outcome.response >= list.num_responses;
    });
    if (!listed.is_run) {
      saved.run.status = MethodStatus::kDoesNotFit;
    } else if (std::ssize(saved.run.outcomes) < saved.run.num_expected) {
      saved.run.status = MethodStatus::kInterrupted;
    }
    runs.push_back(std::move(saved));
  }
}

void LoadPath(const std::string& path, std::vector<SavedRun>& runs) {
  namespace fs = std::filesystem;
  if (!FileExists(path)) throw IoError(path, "no such file or folder");
  if (!fs::is_directory(path)) {
    runs.push_back(LoadSummary(path));
    return;
  }
  if (FileExists(JoinPath(path, "run.json"))) {
    runs.push_back(LoadRunFolder(path));
    return;
  }
  const std::string list = JoinPath(path, "comparison.json");
  if (FileExists(list)) {
    LoadListedRuns(path, ParseComparisonList(ReadFile(list), list), runs);
    return;
  }
  std::vector<std::string> folders;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(path)) {
    if (entry.path().filename() == "run.json") folders.push_back(entry.path().parent_path());
  }
  if (folders.empty()) {
    throw InvalidInput(path,
                       "found no run.json here or below, expected a folder that eval or "
                       "compare made with --out");
  }
  std::sort(folders.begin(), folders.end());
  const auto first = std::ssize(runs);
  for (const std::string& folder : folders) runs.push_back(LoadRunFolder(folder));
  std::stable_sort(runs.begin() + first, runs.end(), [](const SavedRun& a, const SavedRun& b) {
    return a.budget_bytes < b.budget_bytes;
  });
}

void CheckSameSettings(const SavedRun& run, const SavedRun& first) {
  const auto check = [&](const std::string& name, const std::string& found,
                         const std::string& expected) {
    // A summary does not know all of them.
    if (found == expected || found.empty() || expected.empty()) return;
    throw InvalidInput(run.path, fmt::format("{}: found '{}', but '{}' in {}; expected runs of the "
                                             "same problems, seeds and limits",
                                             name, found, expected, first.path));
  };
  check("--benchmark", run.benchmark, first.benchmark);
  check("--model", run.model, first.model);
  for (const char* option : kSharedOptions) {
    check(option, FindOption(run, option), FindOption(first, option));
  }
}

// Problems and responses to each, of outcomes that are complete.
void CountResponses(const MethodRun& run, Comparison& comparison) {
  std::set<std::string> problems;
  for (const Outcome& outcome : run.outcomes) {
    problems.insert(outcome.id);
    comparison.num_responses = std::max(comparison.num_responses, outcome.response + 1);
  }
  comparison.num_problems = std::ssize(problems);
}

// SPECs that occur twice are told apart by their paths.
void NameApart(std::vector<SavedRun>& runs) {
  std::map<std::pair<int64_t, std::string>, int64_t> count;
  for (const SavedRun& saved : runs) ++count[{saved.budget_bytes, saved.run.method}];
  for (SavedRun& saved : runs) {
    if (count[{saved.budget_bytes, saved.run.method}] > 1) {
      saved.run.method += " @ " + saved.path;
    }
  }
}

}  // namespace

std::string RunFolder(const std::string& spec, int64_t budget_bytes) {
  std::string name;
  for (const char c : spec) {
    const bool is_plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                          (c >= '0' && c <= '9') ||
                          std::string_view("+,-._=").find(c) != std::string_view::npos;
    if (is_plain) {
      name += c;
    } else if (c == ':') {
      name += '~';
    } else {
      name += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
  }
  const std::string budget = budget_bytes == 0          ? "no-budget"
                             : budget_bytes % 1024 == 0 ? fmt::format("{}KiB", budget_bytes / 1024)
                                                        : fmt::format("{}B", budget_bytes);
  return JoinPath(budget, name);
}

std::vector<SavedRun> LoadRuns(const std::vector<std::string>& paths) {
  std::vector<SavedRun> runs;
  for (const std::string& path : paths) LoadPath(path, runs);
  for (SavedRun& saved : runs) {
    saved.run.is_simulated = IsSimulatedMethod(saved.run.method);
    if (saved.values_per_token == 0) saved.run.num_expected = std::ssize(saved.run.outcomes);
  }
  return runs;
}

std::vector<ComparisonTable> MakeTables(const MethodRun& baseline,
                                        const std::vector<BudgetRuns>& budgets,
                                        const std::string& against) {
  std::vector<ComparisonTable> tables;
  for (const BudgetRuns& budget : budgets) {
    std::vector<MethodRun> runs = {baseline};
    runs.insert(runs.end(), budget.runs.begin(), budget.runs.end());
    std::optional<size_t> against_index;
    for (size_t i = 1; i < runs.size(); ++i) {
      if (!against.empty() && runs[i].method == against) against_index = i;
    }
    tables.push_back({budget.budget_bytes, CompareMethods(runs, 0, against_index)});
  }
  return tables;
}

Comparison CompareSavedRuns(const std::vector<SavedRun>& saved_runs,
                            const std::string& asked_against) {
  std::vector<SavedRun> runs = saved_runs;
  std::string against = asked_against;
  for (const SavedRun& saved : runs) {
    if (against.empty()) against = saved.against;
  }
  const auto baseline = std::find_if(runs.begin(), runs.end(), [](const SavedRun& saved) {
    return IsBaselineMethod(saved.run.method);
  });
  if (baseline == runs.end()) {
    throw InvalidInput("--from", fmt::format("none of the {} runs is one of fp16, which the others "
                                             "are compared with; expected its folder, too",
                                             runs.size()));
  }
  std::rotate(runs.begin(), baseline, baseline + 1);
  const SavedRun first = runs[0];
  for (const SavedRun& saved : runs) CheckSameSettings(saved, first);
  runs.erase(runs.begin());
  NameApart(runs);
  std::vector<BudgetRuns> budgets;
  bool knows_against = against.empty();
  for (const SavedRun& saved : runs) {
    auto budget = std::find_if(budgets.begin(), budgets.end(), [&](const BudgetRuns& one) {
      return one.budget_bytes == saved.budget_bytes;
    });
    if (budget == budgets.end()) budget = budgets.insert(budget, {saved.budget_bytes, {}});
    budget->runs.push_back(saved.run);
    knows_against |= saved.run.method == against;
  }
  if (!knows_against) {
    throw InvalidInput("--against",
                       fmt::format("none of the runs is of '{}', expected the SPEC of one that is "
                                   "not the baseline",
                                   against));
  }
  if (budgets.empty()) budgets.emplace_back();

  Comparison comparison;
  comparison.benchmark = first.benchmark;
  comparison.model = first.model;
  comparison.baseline = first.run.method;
  comparison.against = against;
  comparison.max_len = first.max_len;
  comparison.values_per_token = first.values_per_token;
  for (const char* option : kSharedOptions) {
    const std::string value = FindOption(first, option);
    if (!value.empty()) comparison.settings.emplace_back(option, value);
  }
  CountResponses(first.run, comparison);
  comparison.tables = MakeTables(first.run, budgets, against);
  return comparison;
}

bool IsSimulatedMethod(const std::string& spec) {
  const std::string name = ParseMethodSpec(spec).name;
  const std::vector<MethodInfo> methods = ListMethods();
  return std::any_of(methods.begin(), methods.end(), [&](const MethodInfo& info) {
    return info.name == name && info.is_simulated;
  });
}

bool IsBaselineMethod(const std::string& spec) { return ParseMethodSpec(spec).name == "fp16"; }

}  // namespace pmkvq
