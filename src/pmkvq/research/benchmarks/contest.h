// Contests in the folder layout of the paper's reference:
//
//   CONTEST/answers.csv      header id,answer; one row a problem, in the order of the contest
//   CONTEST/problems/ID.tex  the problem
//   CONTEST/config.yaml      instruction: "..."; optional
//
// The readers of csv and yaml here know only the forms that such folders use, and refuse others.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pmkvq/io/dataset.h"

namespace pmkvq {

// The reference puts this behind every problem; used for a contest without config.yaml.
inline constexpr std::string_view kInstruction =
    "Please reason step by step, and put your final answer within \\boxed{}.";

// The problems of `folder`: one contest (it holds answers.csv), or all of its subfolders that are,
// by name. Ids are CONTEST.ID, the task is CONTEST. The user turn is the problem without white
// space at its end, a line break, the instruction.
// Throws InvalidInput naming file, line and field; IoError.
std::vector<ProblemRow> LoadContests(const std::string& folder);

// The rows of a CSV text as (id, answer): fields may be quoted ("" within quotes is a quote), other
// columns are skipped. Throws InvalidInput naming `source` and the line.
std::vector<std::pair<std::string, std::string>> ParseAnswersCsv(std::string_view text,
                                                                 const std::string& source);

// `instruction` of a flat YAML mapping: `key: value` lines, values plain, '...' or "..." with
// escapes; comments and empty lines between. "{{" and "}}" become "{" and "}", as Python's
// str.format makes them. Throws InvalidInput naming `source` and the line for anything else.
std::string ParseInstruction(std::string_view yaml, const std::string& source);

}  // namespace pmkvq
