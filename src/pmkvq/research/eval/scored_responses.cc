#include "pmkvq/research/eval/scored_responses.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <numeric>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/json.h"
#include "pmkvq/io/json_lines.h"
#include "pmkvq/research/eval/run_parts.h"
#include "pmkvq/research/judge/judged_text.h"
#include "pmkvq/research/judge/math_equivalence.h"

namespace pmkvq {
namespace {

std::vector<std::string> ResponseFiles(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_directory(path, error)) return {path};
  std::vector<std::string> files;
  std::filesystem::directory_iterator entries(path, error);
  if (error) throw IoError(path, "cannot list the folder: " + error.message());
  const bool is_run = FileExists(JoinPath(path, "run.json"));
  for (const std::filesystem::directory_entry& entry : entries) {
    if (entry.path().extension() != ".jsonl") continue;
    // What a run has begun is no response yet.
    if (is_run && entry.path().filename() == "unfinished.jsonl") continue;
    files.push_back(entry.path().string());
  }
  if (is_run) {
    for (std::string& part : ResponseParts(path).List()) files.push_back(std::move(part));
  }
  if (files.empty()) {
    throw InvalidInput(path,
                       FileExists(JoinPath(path, "comparison.json"))
                           ? "is a comparison; pmkvq compare --from shows it, and judge takes "
                             "the folder of one of its runs"
                           : "files: found no .jsonl, expected at least one");
  }
  std::sort(files.begin(), files.end());
  return files;
}

constexpr size_t kMaxRows = size_t{1} << 18;
constexpr size_t kMinRowBytes = 29;  // {"id":1,"answer":1,"text":""} and LF.

// Rows and the lines that they stand on.
struct LoadedRows {
  std::vector<ResponseRow> rows;
  std::vector<std::pair<uint32_t, uint32_t>> origins;  // Index of the file, line.

  void Load(const std::string& path, uint32_t file, bool is_run) {
    const size_t count = std::min(rows.size() + CountLines(path, kMinRowBytes), kMaxRows);
    rows.reserve(count);
    origins.reserve(count);
    LineReader reader(path);
    std::string line;
    for (uint32_t number = 1; reader.Next(&line); ++number) {
      if (is_run && !reader.whole()) break;
      if (IsBlankLine(line)) continue;
      const std::string source = fmt::format("{}:{}", path, number);
      if (rows.size() == kMaxRows) {
        throw InvalidInput(
            source, fmt::format("rows: found more than {}, expected at most that", kMaxRows));
      }
      rows.push_back(ParseResponseRow(line, source));
      origins.emplace_back(file, number);
    }
  }
};

// Of a run that several shards write to: a response that two of them made is one response.
void DropRepetitions(LoadedRows* loaded) {
  std::map<std::pair<std::string, int64_t>, size_t> first;
  LoadedRows kept;
  for (size_t i = 0; i < loaded->rows.size(); ++i) {
    ResponseRow& row = loaded->rows[i];
    if (row.response) {
      const auto [known, is_new] =
          first.emplace(std::pair{row.id, *row.response}, kept.rows.size());
      if (!is_new && kept.rows[known->second].text == row.text) continue;
    }
    kept.rows.push_back(std::move(row));
    kept.origins.push_back(loaded->origins[i]);
  }
  *loaded = std::move(kept);
}

// Numbers the responses of each problem. Refuses a row that contradicts an earlier one (another
// answer, the same index).
void NumberResponses(const std::vector<std::string>& files, LoadedRows* loaded) {
  std::vector<ResponseRow>& rows = loaded->rows;
  const auto where = [&](size_t row) {
    const auto& [file, line] = loaded->origins[row];
    return fmt::format("{}:{}", files[file], line);
  };
  std::vector<uint32_t> order(rows.size());
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return rows[a].id < rows[b].id; });
  std::vector<uint32_t> group;  // The rows of one problem.
  for (size_t begin = 0; begin < order.size(); begin += group.size()) {
    const ResponseRow& first = rows[order[begin]];
    group.clear();
    for (size_t i = begin; i < order.size() && rows[order[i]].id == first.id; ++i) {
      ResponseRow& row = rows[order[i]];
      if (row.answer != first.answer) {
        throw InvalidInput(where(order[i]),
                           fmt::format("answer: found \"{}\" for problem \"{}\", expected "
                                       "\"{}\" as in an earlier line",
                                       row.answer, row.id, first.answer));
      }
      if (!row.response) row.response = static_cast<int64_t>(group.size());
      group.push_back(order[i]);
    }
    std::stable_sort(group.begin(), group.end(),
                     [&](uint32_t a, uint32_t b) { return *rows[a].response < *rows[b].response; });
    const auto twice = std::adjacent_find(group.begin(), group.end(), [&](uint32_t a, uint32_t b) {
      return rows[a].response == rows[b].response;
    });
    if (twice == group.end()) continue;
    const uint32_t second = *(twice + 1);
    throw InvalidInput(where(second),
                       fmt::format("response: found {} of problem \"{}\" a second time",
                                   *rows[second].response, rows[second].id));
  }
}

struct AnswerClass {
  std::string representative;
  int64_t votes = 0;
  bool correct = false;
};

// Whether the most frequent of the answers to one problem is right.
bool VoteIsRight(const std::map<int64_t, const GradedResponse*>& answers) {
  std::vector<AnswerClass> classes;
  for (const auto& [index, graded] : answers) {
    const GradedResponse& answer = *graded;
    if (answer.extracted.empty()) continue;
    CancelPoint();  // Each new answer is compared with all others.
    const auto found = std::find_if(classes.begin(), classes.end(), [&](const AnswerClass& known) {
      return known.representative == answer.extracted ||
             (!answer.is_code && known.correct == answer.correct &&
              EquivalentAnswers(known.representative, answer.extracted));
    });
    if (found == classes.end()) {
      classes.push_back({answer.extracted, 1, answer.correct});
    } else {
      ++found->votes;
    }
  }
  const auto winner =
      std::max_element(classes.begin(), classes.end(), [](const auto& a, const auto& b) {
        return a.votes < b.votes;  // The first of the largest.
      });
  return winner != classes.end() && winner->correct;
}

struct Tally {
  int64_t correct = 0;
  int64_t total = 0;

  double share() const { return static_cast<double>(correct) / static_cast<double>(total); }
};

double StandardDeviation(const std::map<int64_t, Tally>& by_response) {
  const auto count = static_cast<double>(by_response.size());
  double mean = 0;
  for (const auto& [response, tally] : by_response) mean += tally.share() / count;
  double variance = 0;
  for (const auto& [response, tally] : by_response) {
    variance += (tally.share() - mean) * (tally.share() - mean) / count;
  }
  return std::sqrt(variance);
}

}  // namespace

ResponseRow ParseResponseRow(std::string_view line, const std::string& source) {
  const JsonValue json = JsonValue::Parse(line, source);
  if (!json.IsObject()) json.Fail("an object with \"id\", \"answer\" and \"text\"");
  ResponseRow row;
  row.id = json.Find("id").AsTextOrNumber();
  row.answer = json.Find("answer").AsTextOrNumber();
  row.text = json.Find("text").AsString();
  if (json.Has("grading") && json.At("grading").AsString() == "code") {
    row.is_code = true;
    row.correct = json.Find("correct").AsBool();
    row.extracted = json.Find("extracted").AsString();
  }
  if (json.Has("response")) row.response = json.At("response").AsInt(0, INT32_MAX);
  if (json.Has("finish_reason")) row.finish_reason = json.At("finish_reason").AsString();
  if (json.Has("output_tokens")) row.output_tokens = json.At("output_tokens").AsInt(0, INT32_MAX);
  return row;
}

std::vector<ResponseRow> LoadResponses(const std::string& path) {
  const bool is_run = FileExists(JoinPath(path, "run.json"));
  const std::vector<std::string> files = ResponseFiles(path);
  LoadedRows loaded;
  for (size_t i = 0; i < files.size(); ++i) {
    loaded.Load(files[i], static_cast<uint32_t>(i), is_run);
  }
  if (loaded.rows.empty()) {
    throw InvalidInput(path, "rows: found none, expected at least one JSON line");
  }
  if (is_run) DropRepetitions(&loaded);
  NumberResponses(files, &loaded);
  return std::move(loaded.rows);
}

JudgeSummary SummarizeGraded(const std::vector<GradedResponse>& responses) {
  JudgeSummary summary;
  if (responses.empty()) return summary;
  // By response index, so that the vote does not depend on the order of finishing.
  std::map<std::string, std::map<int64_t, const GradedResponse*>> by_problem;
  std::map<int64_t, Tally> by_response;
  Tally all;
  int64_t output_tokens = 0;
  int64_t cut_by_length = 0;
  int64_t cut_by_budget = 0;
  for (const GradedResponse& row : responses) {
    for (Tally* counted : {&by_response[row.response], &all}) {
      ++counted->total;
      counted->correct += row.correct ? 1 : 0;
    }
    output_tokens += row.output_tokens;
    cut_by_length += row.finish_reason == "length" ? 1 : 0;
    cut_by_budget += row.finish_reason == "kv_budget" ? 1 : 0;
    by_problem[row.id].emplace(row.response, &row);
  }
  int64_t votes_right = 0;
  std::vector<ResponseCluster> problems;
  for (const auto& [id, answers] : by_problem) {
    votes_right += VoteIsRight(answers) ? 1 : 0;
    ResponseCluster& problem = problems.emplace_back();
    for (const auto& [response, row] : answers) {
      ++problem.responses;
      problem.correct += row->correct ? 1 : 0;
    }
  }
  const double share = 1.0 / static_cast<double>(responses.size());
  summary.num_problems = static_cast<int64_t>(by_problem.size());
  summary.num_responses = all.total;
  summary.pass_at_1 = all.share();
  summary.interval = ClusteredShareInterval(problems);
  summary.standard_deviation = StandardDeviation(by_response);
  summary.voting = static_cast<double>(votes_right) / static_cast<double>(by_problem.size());
  summary.mean_output_tokens = static_cast<double>(output_tokens) * share;
  summary.cut_by_length = static_cast<double>(cut_by_length) * share;
  summary.cut_by_budget = static_cast<double>(cut_by_budget) * share;
  return summary;
}

JudgeSummary JudgeResponses(const std::vector<ResponseRow>& rows) {
  std::vector<GradedResponse> graded;
  for (const ResponseRow& row : rows) {
    JudgedText judged;
    if (row.is_code) {
      judged = {row.extracted, row.correct};
    } else if (row.finish_reason != kErrorReason) {
      judged = JudgeText(row.text, row.answer);
    }
    graded.push_back({row.id, row.response.value(), row.is_code, std::move(judged.extracted),
                      judged.correct, row.finish_reason, row.output_tokens});
  }
  return SummarizeGraded(graded);
}

std::vector<JudgeCase> LoadJudgeCases(const std::string& path) {
  std::vector<JudgeCase> cases;
  constexpr size_t kMinCaseBytes = 26;  // {"response":"","gold":""} and LF.
  cases.reserve(std::min(CountLines(path, kMinCaseBytes), kMaxRows));
  ForEachLine(path, [&](std::string_view line, const std::string& source, int64_t) {
    const JsonValue json = JsonValue::Parse(line, source);
    if (!json.IsObject()) json.Fail("an object with \"response\" and \"gold\"");
    if (cases.size() == kMaxRows) {
      throw InvalidInput(source, fmt::format("rows: found more than {}", kMaxRows));
    }
    cases.push_back({json.Find("response").AsString(), json.Find("gold").AsTextOrNumber()});
  });
  if (cases.empty()) throw InvalidInput(path, "rows: found none, expected at least one JSON line");
  return cases;
}

}  // namespace pmkvq
