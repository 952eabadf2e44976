// Benchmarks: which problems, in which order, with which words around them, and how an answer is
// graded.
//
// longcot     .jsonl of the shipped model (problem, answer, task, level, reference_chain)
// aime, cmimc, hmmt   a folder in the layout of the paper's reference: one folder per contest with
//             problems/N.tex, answers.csv (id,answer) and config.yaml (instruction); DIR is one
//             contest or the folder of several, which are taken in the order of their names
// gsm8k       test.jsonl (question; answer ends in "#### N")
// math500     test.jsonl (problem, answer)
// jsonl       any .jsonl with problem, answer, and optionally id, task, level
// livecodebench   .jsonl of code problems; graded by running the tests (eval/code_problem.h)
#pragma once

#include <cstdint>
#include <string>
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

// Names for --help, in the order above.
std::vector<std::string> ListBenchmarks();

// `data` is a file or a folder; a folder that holds test.jsonl (gsm8k, math500), problems.jsonl
// (longcot) or test*.jsonl (livecodebench) stands for it. Throws InvalidInput naming --benchmark
// (unknown: the known ones are listed), or file, line and field; IoError.
Benchmark LoadBenchmark(const std::string& name, const std::string& data);

// Part of a benchmark, in its order.
struct ProblemSelection {
  int64_t start = 0;      // First problem, counted from 0.
  int64_t end = -1;       // One past the last; -1: all.
  int64_t per_cell = 0;   // The first so many of each (task, level); 0: all. Applied first.
  int64_t min_level = 0;  // Applied first, too.
  int64_t max_level = 1000;
};
// Throws InvalidInput naming the option when nothing is left.
std::vector<ProblemRow> SelectProblems(const std::vector<ProblemRow>& problems,
                                       const ProblemSelection& selection);

}  // namespace pmkvq
