#include "pmkvq/comm/all_or_none.h"

#include <fmt/format.h>

#include <exception>
#include <string>
#include <vector>

namespace pmkvq {
namespace {

constexpr char kCancelled = 'c';
constexpr char kFailed = 'f';

}  // namespace

void WaitForAll(Communicator& ranks) {
  for (int root = 0; root < ranks.size(); ++root) {
    std::string nothing;
    if (root == ranks.rank()) {
      ranks.BroadcastString(&nothing, root);
    } else {
      ranks.WaitForString(&nothing, root);
    }
  }
}

void AllOrNone(Communicator* ranks, const std::function<void()>& work) {
  if (ranks == nullptr || ranks->size() == 1) {
    work();
    return;
  }
  std::exception_ptr mine;
  std::string outcome;  // Empty: done. Else a letter and the message.
  try {
    work();
  } catch (const Cancelled& error) {
    mine = std::current_exception();
    outcome = std::string(1, kCancelled) + error.what();
  } catch (const std::exception& error) {
    mine = std::current_exception();
    outcome = std::string(1, kFailed) + error.what();
  }
  WaitForAll(*ranks);
  const std::vector<std::string> outcomes = ranks->GatherStrings(outcome);
  std::string first;  // "RANK LETTER MESSAGE" of the first rank that failed.
  for (size_t rank = 0; rank < outcomes.size() && first.empty(); ++rank) {
    if (!outcomes[rank].empty()) first = fmt::format("{} {}", rank, outcomes[rank]);
  }
  ranks->BroadcastString(&first);
  if (first.empty()) return;
  const size_t blank = first.find(' ');
  const std::string rank = first.substr(0, blank);
  if (mine != nullptr && rank == std::to_string(ranks->rank())) std::rethrow_exception(mine);
  const std::string message = first.substr(blank + 2);
  if (first[blank + 1] == kCancelled) throw Cancelled("rank " + rank, message);
  throw OtherRankFailed("rank " + rank, message);
}

}  // namespace pmkvq
