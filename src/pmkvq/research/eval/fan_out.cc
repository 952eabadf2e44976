#include "pmkvq/research/eval/fan_out.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/comm/all_or_none.h"
#include "pmkvq/io/json_lines.h"

namespace pmkvq {
namespace {

// "index id" and a line break for each; ids have no line break that JSON lines could not have, so
// the id comes last and its length is given.
std::string TextOfKeys(const ResponseKeys& keys) {
  std::string text;
  for (const auto& [id, index] : keys) text += fmt::format("{} {} {}\n", index, id.size(), id);
  return text;
}

ResponseKeys ParseKeys(std::string_view text) {
  ResponseKeys keys;
  while (!text.empty()) {
    const size_t first = text.find(' ');
    const size_t second = text.find(' ', first + 1);
    const int64_t index = std::stoll(std::string(text.substr(0, first)));
    const size_t size = std::stoull(std::string(text.substr(first + 1, second - first - 1)));
    keys.insert({std::string(text.substr(second + 1, size)), index});
    text.remove_prefix(second + 1 + size + 1);
  }
  return keys;
}

ResponseKeys KeysOf(const std::vector<Response>& responses) {
  ResponseKeys keys;
  for (const Response& response : responses) keys.insert({response.id, response.response});
  return keys;
}

// What a rank sends about its part of the work.
struct Part {
  int64_t num_responses = 0;
  int64_t num_tokens = 0;
  double seconds = 0;
};

}  // namespace

SharedRun::SharedRun(const std::string& folder, const RunSettings& settings, const Shard& shard,
                     Communicator* ranks)
    : ranks_(ranks), shard_(shard) {
  if (is_shared()) {
    PMKVQ_CHECK(shard.is_whole());
    shard_ = {ranks->rank(), ranks->size()};
  }
  AllOrNone(ranks_, [&] {
    if (is_shared() && ranks_->rank() == 0 && !folder.empty()) ResponseLog(folder, settings);
  });
  AllOrNone(ranks_, [&] {
    log_ = folder.empty() ? std::make_unique<ResponseLog>()
                          : std::make_unique<ResponseLog>(folder, settings, shard_);
  });
  before_ = log_->responses();
  if (!is_shared()) return;
  ResponseKeys keys = KeysOf(before_);
  std::string text = ranks_->rank() == 0 ? TextOfKeys(keys) : "";
  ranks_->BroadcastString(&text);
  keys_before_ = std::make_shared<const ResponseKeys>(ParseKeys(text));
}

EvaluationOptions SharedRun::PartOf(EvaluationOptions options) const {
  options.shard = shard_;
  options.not_dealt = keys_before_;
  return options;
}

FanOutFigures SharedRun::Finish(int64_t num_tokens, double seconds) {
  FanOutFigures figures;
  figures.num_responses = std::ssize(log_->responses()) - std::ssize(before_);
  figures.num_tokens = num_tokens;
  figures.seconds = seconds;
  if (!is_shared()) {
    AllOrNone(nullptr, [&] { is_merged_ = log_->Close(); });
    return figures;
  }
  figures.num_ranks = ranks_->size();
  const bool is_first = ranks_->rank() == 0;
  // Rank 0 closes last: it merges what the others have written.
  AllOrNone(ranks_, [&] {
    if (!is_first) log_->Close();
  });
  AllOrNone(ranks_, [&] {
    if (is_first) is_merged_ = log_->Close();
  });
  // Without a folder, or without one that all hosts share, rank 0 lacks some.
  std::string known = is_first ? TextOfKeys(KeysOf(log_->responses())) : "";
  ranks_->BroadcastString(&known);
  const ResponseKeys keys = ParseKeys(known);
  std::string lines;
  for (const Response& response : log_->responses()) {
    if (!keys.contains({response.id, response.response})) lines += ResponseLine(response) + "\n";
  }
  const std::vector<std::string> parts = ranks_->GatherStrings(lines);
  AllOrNone(ranks_, [&] {
    std::vector<Response> others;
    for (size_t rank = 0; rank < parts.size(); ++rank) {
      ForEachLineOf(parts[rank], fmt::format("rank {}", rank),
                    [&](std::string_view line, const std::string& source, int64_t) {
                      others.push_back(ParseResponse(line, source));
                    });
    }
    log_->AppendOfOthers(others);
  });

  const Part mine{figures.num_responses, num_tokens, seconds};
  std::vector<Part> all(static_cast<size_t>(ranks_->size()));
  ranks_->Gather(&mine, sizeof(mine), all.data());
  if (!is_first) return figures;
  figures.num_responses = figures.num_tokens = 0;
  double sum = 0;
  for (const Part& part : all) {
    figures.num_responses += part.num_responses;
    figures.num_tokens += part.num_tokens;
    figures.seconds = std::max(figures.seconds, part.seconds);
    sum += part.seconds;
  }
  if (figures.seconds > 0) figures.busy_share = sum / ranks_->size() / figures.seconds;
  return figures;
}

}  // namespace pmkvq
