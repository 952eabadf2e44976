#include "pmkvq/research/benchmarks/benchmark.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/json.h"
#include "pmkvq/io/json_lines.h"
#include "pmkvq/research/benchmarks/code_problem.h"
#include "pmkvq/research/benchmarks/contest.h"
#include "pmkvq/research/judge/answer.h"

namespace pmkvq {
namespace {

bool IsFolder(const std::string& path) {
  std::error_code error;
  return std::filesystem::is_directory(path, error);
}

// `name` of the folder `data`, or `data` itself when it is no folder.
std::string FileIn(const std::string& data, const std::string& name) {
  if (!IsFolder(data)) return data;
  const std::string path = JoinPath(data, name);
  if (!FileExists(path)) {
    throw InvalidInput(data, fmt::format("found no {} in the folder, expected it there, or a file "
                                         "named by --data",
                                         name));
  }
  return path;
}

std::string WithInstruction(const std::string& problem) {
  return fmt::format("{}\n{}", problem, kInstruction);
}

constexpr size_t kMaxRows = size_t{1} << 15;  // GSM8K has 7,473, MATH 12,500.

// Rows of a file, read by `parse_row`; rows without an id become PREFIX.LINE.
template <class ParseRow>
std::vector<ProblemRow> LoadRows(const std::string& path, const std::string& prefix,
                                 ParseRow parse_row) {
  std::vector<ProblemRow> rows;
  std::set<std::string> ids;
  ForEachLine(path, [&](std::string_view line, const std::string& source, int64_t number) {
    if (rows.size() == kMaxRows) {
      throw InvalidInput(source,
                         fmt::format("rows: found more than {}, expected at most that", kMaxRows));
    }
    ProblemRow row = parse_row(line, source);
    row.problem = WithInstruction(row.problem);
    if (row.id.empty()) row.id = fmt::format("{}.{}", prefix, number);
    if (!ids.insert(row.id).second) {
      throw InvalidInput(source,
                         fmt::format("id: found '{}' again, expected every id once", row.id));
    }
    rows.push_back(std::move(row));
  });
  if (rows.empty()) throw InvalidInput(path, "rows: found none, expected at least one JSON line");
  return rows;
}

// The file, or the test*.jsonl of a folder (one per release) in the order of their names.
std::vector<ProblemRow> LoadCodeFiles(const std::string& data) {
  if (!IsFolder(data)) return LoadCodeProblems(data);
  std::vector<std::string> files;
  std::error_code error;
  std::filesystem::directory_iterator entries(data, error);
  if (error) throw IoError(data, "cannot list the folder: " + error.message());
  for (const std::filesystem::directory_entry& entry : entries) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("test") && name.ends_with(".jsonl"))
      files.push_back(entry.path().string());
  }
  if (files.empty()) throw InvalidInput(data, "found no test*.jsonl in the folder, expected one");
  std::sort(files.begin(), files.end());
  std::vector<ProblemRow> problems;
  std::set<std::string> ids;
  for (const std::string& file : files) {
    for (ProblemRow& row : LoadCodeProblems(file)) {
      if (!ids.insert(row.id).second) {
        throw InvalidInput(file, fmt::format("question_id: found '{}', which another file has too, "
                                             "expected every id once",
                                             row.id));
      }
      problems.push_back(std::move(row));
    }
  }
  return problems;
}

std::string NonEmpty(const JsonValue& value) {
  std::string text = value.AsString();
  if (text.empty()) value.Fail("a string that is not empty");
  return text;
}

}  // namespace

std::vector<BenchmarkInfo> ListBenchmarks() {
  return {
      {"longcot", "the shipped model's problems (default data: problems.jsonl of the model)"},
      {"aime", "contest folders (problems/N.tex, answers.csv, config.yaml)", 0.6, 0.95, 16, 32768},
      {"cmimc", "likewise", 0.6, 0.95, 16, 32768},
      {"hmmt", "likewise", 0.6, 0.95, 16, 32768},
      {"gsm8k", "test.jsonl with question, and answer that ends in #### N", 0.6, 0.95, 16, 32768},
      {"math500", "test.jsonl with problem and answer", 0.6, 0.95, 16, 32768},
      {"jsonl", "any .jsonl with problem and answer"},
      {"livecodebench", "its .jsonl; answers are programs, run in a sandbox", 0.6, 0.95, 4, 32768},
  };
}

BenchmarkInfo FindBenchmark(const std::string& name) {
  std::vector<std::string> names;
  for (BenchmarkInfo& info : ListBenchmarks()) {
    if (info.name == name) return info;
    names.push_back(info.name);
  }
  throw InvalidInput("--benchmark",
                     fmt::format("found '{}', expected one of {}", name, fmt::join(names, ", ")));
}

Benchmark LoadBenchmark(const std::string& name, const std::string& data) {
  FindBenchmark(name);
  Benchmark benchmark;
  benchmark.name = name;
  if (name == "longcot") {
    benchmark.problems = LoadProblems(FileIn(data, "problems.jsonl"));
  } else if (name == "jsonl") {
    if (IsFolder(data)) throw InvalidInput(data, "found a folder, expected a .jsonl file");
    benchmark.problems = LoadProblems(data);
  } else if (name == "gsm8k") {
    benchmark.problems = LoadRows(FileIn(data, "test.jsonl"), name, ParseGsm8kRow);
  } else if (name == "math500") {
    benchmark.problems = LoadRows(FileIn(data, "test.jsonl"), name, ParseMath500Row);
  } else if (name == "livecodebench") {
    benchmark.grading = Grading::kCode;
    benchmark.problems = LoadCodeFiles(data);
  } else {
    benchmark.problems = LoadContests(data);
  }
  return benchmark;
}

ProblemRow ParseGsm8kRow(std::string_view line, const std::string& source) {
  const JsonValue json = JsonValue::Parse(line, source);
  if (!json.IsObject()) json.Fail("an object with \"question\" and \"answer\"");
  ProblemRow row;
  row.problem = NonEmpty(json.Find("question"));
  const JsonValue answer = json.Find("answer");
  const std::string solution = answer.AsString();
  if (solution.find("####") != std::string::npos) row.answer = ExtractGold(solution);
  if (row.answer.empty()) answer.Fail("a solution that ends in \"#### N\"");
  return row;
}

ProblemRow ParseMath500Row(std::string_view line, const std::string& source) {
  const JsonValue json = JsonValue::Parse(line, source);
  if (!json.IsObject()) json.Fail("an object with \"problem\" and \"answer\"");
  ProblemRow row;
  if (json.Has("unique_id")) row.id = json.At("unique_id").AsString();
  if (json.Has("subject")) row.task = json.At("subject").AsString();
  if (json.Has("level")) row.level = json.At("level").AsInt();
  row.problem = NonEmpty(json.Find("problem"));
  row.answer = NonEmpty(json.Find("answer"));
  return row;
}

std::vector<ProblemRow> SelectProblems(const std::vector<ProblemRow>& problems,
                                       const ProblemSelection& selection) {
  std::map<std::pair<std::string, int64_t>, int64_t> seen;
  std::vector<ProblemRow> selected;
  for (const ProblemRow& problem : problems) {
    if (problem.level < selection.min_level || problem.level > selection.max_level) continue;
    const int64_t count = ++seen[{problem.task, problem.level}];
    if (selection.per_cell == 0 || count <= selection.per_cell) selected.push_back(problem);
  }
  const auto size = static_cast<int64_t>(selected.size());
  if (size == 0) {
    throw InvalidInput("--min-level",
                       fmt::format("found no problem of levels {} to {}, expected at least one",
                                   selection.min_level, selection.max_level));
  }
  if (selection.start < 0 || selection.start >= size) {
    throw InvalidInput("--start", fmt::format("found {}, expected a number from 0 to {} (there "
                                              "are {} problems)",
                                              selection.start, size - 1, size));
  }
  const int64_t end = selection.end < 0 ? size : std::min(selection.end, size);
  if (end <= selection.start) {
    throw InvalidInput("--end", fmt::format("found {}, expected more than --start {}",
                                            selection.end, selection.start));
  }
  return {selected.begin() + selection.start, selected.begin() + end};
}

}  // namespace pmkvq
