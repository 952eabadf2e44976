#include "pmkvq/research/analysis/texts.h"

#include <fmt/format.h>

#include <algorithm>

#include "pmkvq/base/error.h"

namespace pmkvq {

std::string ProblemText(const ProblemRow& problem, const ChatTemplate& chat_template) {
  return chat_template.Render({{"user", problem.problem}}, true).text + problem.reference_chain;
}

TaskTexts SplitTask(const std::string& name, const std::vector<std::vector<int32_t>>& texts,
                    const TaskTextOptions& options) {
  TaskTexts task;
  task.name = name;
  task.calibration.seq_len = options.seq_len;
  const auto seq_len = static_cast<size_t>(options.seq_len);
  std::vector<int32_t> stream;
  std::vector<std::vector<int32_t>> held_out;
  for (size_t row = 0; row < texts.size(); ++row) {
    if (row % 2 == 1) {
      held_out.push_back(texts[row]);
      if (held_out.back().size() > seq_len) held_out.back().resize(seq_len);
    } else if (stream.size() < seq_len * static_cast<size_t>(options.num_samples)) {
      stream.insert(stream.end(), texts[row].begin(), texts[row].end());
    }
  }
  for (size_t begin = 0; begin + seq_len <= stream.size(); begin += seq_len) {
    if (std::ssize(task.calibration.tokens) == options.num_samples) break;
    const auto first = stream.begin() + static_cast<std::ptrdiff_t>(begin);
    task.calibration.tokens.emplace_back(first, first + static_cast<std::ptrdiff_t>(seq_len));
  }
  task.evaluation = LongestTexts(held_out, options.num_evaluation, options.seq_len);
  if (task.calibration.tokens.empty() || task.evaluation.empty()) {
    throw InvalidInput(
        fmt::format("task {}", name),
        fmt::format("found {} texts, {} tokens of them for calibration, expected --seq-len {} "
                    "tokens at least, and a second text to evaluate on",
                    texts.size(), stream.size(), options.seq_len));
  }
  return task;
}

std::vector<std::vector<int32_t>> LongestTexts(const std::vector<std::vector<int32_t>>& texts,
                                               int64_t count, int64_t max_len) {
  std::vector<std::vector<int32_t>> longest;
  for (const std::vector<int32_t>& text : texts) {
    if (text.size() >= 2 && static_cast<int64_t>(text.size()) <= max_len) longest.push_back(text);
  }
  std::stable_sort(longest.begin(), longest.end(),
                   [](const auto& a, const auto& b) { return a.size() > b.size(); });
  if (std::ssize(longest) > count) longest.resize(static_cast<size_t>(count));
  return longest;
}

}  // namespace pmkvq
