#include "ranks.h"

#include <fmt/format.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <thread>

#include "bench_comm.h"
#include "help_format.h"
#include "option_values.h"
#include "pmkvq/base/byte_size.h"
#include "pmkvq/base/error.h"
#include "pmkvq/kernels/process_target.h"
#include "terminal.h"
#include "version.h"

namespace pmkvq::cli {
namespace {

// Commands that deal their work out to the leaders of several groups.
constexpr std::array<std::string_view, 7> kDealingCommands = {
    "eval", "compare", "perplexity", "calibrate", "sensitivity", "max-keys", "rep-scales"};
// Commands that run a model which ranks may share.
constexpr std::array<std::string_view, 7> kSharingCommands = {
    "run", "serve", "eval", "compare", "perplexity", "logits", "bench"};

template <size_t N>
bool Has(const std::array<std::string_view, N>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// The value of --tp K or --tp=K; 0: none. Of a value that is no number of ranks the command line
// says what is wrong, later.
int TpOf(int argc, char** argv) {
  int found = 0;
  for (int i = 1; i < argc; ++i) {
    std::string_view text = argv[i];
    if (text == "--tp" && i + 1 < argc) {
      text = argv[i + 1];
    } else if (text.starts_with("--tp=")) {
      text.remove_prefix(5);
    } else {
      continue;
    }
    int tp = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), tp);
    const bool is_whole = error == std::errc() && end == text.data() + text.size();
    if (is_whole && tp > 0) found = tp;
  }
  return found;
}

cpu_set_t Allowed() {
  cpu_set_t set;
  CPU_ZERO(&set);
  sched_getaffinity(0, sizeof(set), &set);
  return set;
}

}  // namespace

Ranks& Ranks::OfProcess() {
  static Ranks ranks;
  return ranks;
}

void Ranks::Open(int argc, char** argv) {
  command_ = argc > 1 ? argv[1] : "";
  const int tp = TpOf(argc, argv);
  world_ = OpenCommunicator();
  if (size() == 1) {
    if (tp > 1) {
      throw InvalidInput("--tp", fmt::format("found {}, expected 1: no launcher started ranks "
                                             "(mpirun -np {} pmkvq ...)",
                                             tp, tp));
    }
    return;
  }
  // Open MPI gives ranks a terminal for stdout, wherever its own goes: a file, say.
  setenv("NO_COLOR", "1", 1);
  setenv("TERM", "dumb", 1);
  try {
    Arrange(tp);
  } catch (const Error&) {
    // All ranks have found the same; one says it.
    if (world_->rank() == 0) throw;
    world_.reset();
    std::exit(1);
  }
}

void Ranks::Arrange(int tp) {
  const int of_group = tp > 0 ? tp : Has(kDealingCommands, command_) ? 1 : size();
  if (size() % of_group != 0) {
    throw InvalidInput("--tp", fmt::format("found {} with {} ranks, expected a divisor of them",
                                           of_group, size()));
  }
  if (of_group < size() && !Has(kDealingCommands, command_)) {
    throw InvalidInput("--tp",
                       fmt::format("found {} with {} ranks, expected {}: {} takes all ranks "
                                   "together",
                                   of_group, size(), size(), command_));
  }
  CheckAlike();
  ShareOutProcessors();
  group_comm_ = world_->Split(world_->rank() / of_group, world_->rank());
  std::unique_ptr<Communicator> peers =
      world_->Split(world_->rank() % of_group == 0 ? 0 : 1, world_->rank());
  if (is_leader() && peers->size() > 1) leaders_ = std::move(peers);
  if (leaders_ != nullptr && leaders_->rank() > 0) MuteOutput();
  if (of_group == 1) return;
  group_ = std::make_unique<ModelRanks>(*group_comm_);
  group_->SetTask(RunCommTask);
}

// Throws on all ranks alike.
void Ranks::CheckAlike() {
  const std::string mine = ShortVersion() + ", instruction set " + ListProcessTargets().chosen;
  std::vector<std::string> all = world_->GatherStrings(mine);
  std::string difference;
  for (size_t rank = 1; rank < all.size() && difference.empty(); ++rank) {
    if (all[rank] != all[0]) {
      difference = fmt::format("rank 0 has {}, rank {} has {}", all[0], rank, all[rank]);
    }
  }
  world_->BroadcastString(&difference);
  if (difference.empty()) return;
  throw Unsupported("ranks", difference +
                                 ", expected the same on all, or their results would differ; "
                                 "PMKVQ_TARGET chooses an instruction set that all have");
}

void Ranks::ShareOutProcessors() {
  const RankPlace place = PlaceOf(*world_);
  const int online = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  cpu_set_t allowed = Allowed();
  const int count = CPU_COUNT(&allowed);
  std::string trap = BindingTrap(world_->rank(), count, online, place.local_size).value_or("");
  const std::vector<std::string> traps = world_->GatherStrings(trap);
  for (const std::string& line : traps) {
    if (!line.empty()) PrintError("warning: " + line);
  }
  if (place.local_size == 1 || count < online) return;
  // Bound to nothing: a rank takes its share of the processors, one at least.
  const int first = place.local_rank * count / place.local_size;
  const int last = std::max(first + 1, (place.local_rank + 1) * count / place.local_size);
  cpu_set_t share;
  CPU_ZERO(&share);
  int index = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    if (index >= first && index < last) CPU_SET(cpu, &share);
    ++index;
  }
  sched_setaffinity(0, sizeof(share), &share);
}

int Ranks::Serve() {
  const int exit_code = group_->Serve();
  group_.reset();
  group_comm_.reset();
  world_.reset();
  return exit_code;
}

void Ranks::Close(int exit_code) {
  if (size() == 1) return;
  if (leaders_ != nullptr && exit_code != 0) {
    // Others may wait for this rank: the launcher ends them.
    std::fflush(nullptr);
    _exit(exit_code);
  }
  if (group_ != nullptr) {
    const CommTotals totals = group_comm_->totals();
    if (exit_code == 0 && totals.bytes_received > 0 && world_->rank() == 0) {
      PrintError(fmt::format("ranks: {}, {:.1f} s in {} exchanges, {} received by each", tp(),
                             totals.seconds, totals.exchanges,
                             FormatByteSize(totals.bytes_received)));
    }
    group_->End(exit_code);
  }
  group_.reset();
  leaders_.reset();
  group_comm_.reset();
  world_.reset();
}

void Ranks::CheckSharesModels() const {
  if (tp() == 1 || Has(kSharingCommands, command_)) return;
  throw Unsupported(
      "ranks", fmt::format("found {} ranks, expected one: {} needs whole models", tp(), command_));
}

void RankCommandOptions::Register(CLI::App& command) {
  command
      .add_option("--tp", tp,
                  "ranks of mpirun that share a model (docs/distributed.md); 0: all of them")
      ->transform(WholeNumber(0, 64))
      ->capture_default_str();
  command
      .add_option("--tp-slices", slices,
                  "slices in which sums are computed, so that 1, 2, 4 and 8 ranks give the same "
                  "bits; 0: 8 with several ranks, else none")
      ->transform(WholeNumber(0, 64))
      ->capture_default_str();
  command
      .add_option("--comm-timeout", timeout_s,
                  "seconds that a rank waits for another one before it ends them all; 0: for ever")
      ->transform(WholeNumber(0, 86400))
      ->capture_default_str();
}

}  // namespace pmkvq::cli
