// Token sequences for the analyses: texts by task, and the longest texts.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pmkvq/io/dataset.h"
#include "pmkvq/research/calib/samples.h"
#include "pmkvq/text/chat_template.h"
#include "pmkvq/text/tokenizer.h"

namespace pmkvq {

// The prompt of a problem and its reference chain, as one text.
std::string ProblemText(const ProblemRow& problem, const ChatTemplate& chat_template);

// Texts of one task in two halves that share no text.
struct TaskTexts {
  std::string name;
  Samples calibration;
  std::vector<std::vector<int32_t>> evaluation;
};

struct TaskTextOptions {
  int64_t num_samples = 8;     // Of calibration, each of seq_len tokens.
  int64_t num_evaluation = 3;  // Texts.
  int64_t seq_len = 2048;      // Evaluation texts are cut here, too.
};

// Odd rows (the second, the fourth, ...) are for evaluation: the longest ones, cut at seq_len,
// ties in the order of the file. The others are joined in their order and cut into samples; there
// may be fewer than asked for, but at least one. `texts` hold token ids. Throws InvalidInput naming
// the task: no whole sample, no text to evaluate on.
TaskTexts SplitTask(const std::string& name, const std::vector<std::vector<int32_t>>& texts,
                    const TaskTextOptions& options);

// The longest texts of at most max_len tokens, at most `count`, longest first; texts of fewer than
// two tokens never. Ties in the given order.
std::vector<std::vector<int32_t>> LongestTexts(const std::vector<std::vector<int32_t>>& texts,
                                               int64_t count, int64_t max_len);

}  // namespace pmkvq
