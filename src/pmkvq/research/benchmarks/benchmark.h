// Benchmarks: which problems, in which order, with which words around them, and how an answer is
// graded.
//
// longcot     .jsonl of the shipped model (problem, answer, task, level, reference_chain)
// aime, cmimc, hmmt   a folder in the layout of the paper's reference (contest.h): DIR is one
//             contest or the folder of several, which are taken in the order of their names
// gsm8k       test.jsonl (question; answer ends in "#### N")
// math500     test.jsonl (problem, answer)
// jsonl       any .jsonl with problem, answer, and optionally id, task, level, reference_chain
// livecodebench   .jsonl of code problems, or a folder of test*.jsonl; graded by running the tests
//             (code_problem.h)
//
// Words: a contest problem is followed by a line break and its contest's instruction; gsm8k and
// math500 by a line break and the instruction that the reference puts behind every problem; longcot
// and jsonl problems stand as they are.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "pmkvq/io/dataset.h"

namespace pmkvq {

enum class Grading : uint8_t {
  kAnswer,  // JudgeText: the extracted answer is equivalent to the gold one.
  kCode,    // The code in the response passes the problem's tests in a sandbox.
};

struct Benchmark {
  std::string name;
  Grading grading = Grading::kAnswer;
  // In a fixed order with ids that differ. `problem` is the whole user turn, instruction included;
  // `answer` the gold answer (kCode: the tests as JSON, CodeProblem's form).
  std::vector<ProblemRow> problems;
};

// Defaults of a benchmark's options.
struct BenchmarkInfo {
  std::string name;
  std::string description;  // One line, for --help.
  // The paper's protocol, or one greedy response for longcot and jsonl.
  double temperature = 0;
  double top_p = 1;
  int64_t num_responses = 1;
  int64_t max_tokens = 0;  // 0: by the reference chain, or as many as fit.
};
// For --help, in the order above.
std::vector<BenchmarkInfo> ListBenchmarks();
// Throws InvalidInput naming --benchmark and the known names.
BenchmarkInfo FindBenchmark(const std::string& name);

// `data` is a file or a folder; a folder that holds test.jsonl (gsm8k, math500), problems.jsonl
// (longcot) or test*.jsonl (livecodebench) stands for it. Throws InvalidInput naming --benchmark
// (unknown: the known ones are listed), or file, line and field; IoError.
Benchmark LoadBenchmark(const std::string& name, const std::string& data);

// One line of gsm8k or math500, without the instruction, id "" where the line has none. `source`
// names file and line in errors. Throws InvalidInput.
ProblemRow ParseGsm8kRow(std::string_view line, const std::string& source);
ProblemRow ParseMath500Row(std::string_view line, const std::string& source);

// Part of a benchmark, in its order.
struct ProblemSelection {
  int64_t start = 0;      // First problem, counted from 0.
  int64_t end = -1;       // One past the last; -1: all. More than there are: all.
  int64_t per_cell = 0;   // The first so many of each (task, level); 0: all. Applied first.
  int64_t min_level = 0;  // Applied first, too.
  int64_t max_level = 1000;
};
// Throws InvalidInput naming the option when nothing is left.
std::vector<ProblemRow> SelectProblems(const std::vector<ProblemRow>& problems,
                                       const ProblemSelection& selection);

}  // namespace pmkvq
