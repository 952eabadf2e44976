// The ranks that mpirun started: who runs the command, and who computes with them.
//
// N ranks are N / K groups of K (--tp K). The ranks of a group share a model (model/ranks/): its
// first one, the leader, runs the command, the others serve it. Commands that deal their work out
// to several leaders do so over leaders(); all others take one group of all ranks.
#pragma once

#include <CLI/CLI.hpp>

#include <memory>
#include <string>

#include "pmkvq/base/sinks.h"
#include "pmkvq/comm/communicator.h"
#include "pmkvq/comm/launch.h"
#include "pmkvq/model/ranks/model_ranks.h"

namespace pmkvq::cli {

class Ranks {
 public:
  // Those of the process.
  static Ranks& OfProcess();

  // Connects the ranks that a launcher started, or finds this process alone. Before any command and
  // any thread. Ranks that are bound to no processors share out those of their host. Says on rank 0
  // what is wrong with the binding. Throws as OpenCommunicator; InvalidInput for a wrong --tp;
  // Unsupported for ranks of other versions of the program or other instruction sets.
  void Open(int argc, char** argv);
  // Whether this rank runs the command. The others call Serve, whose result is their exit code.
  bool is_leader() const { return group_comm_ == nullptr || group_comm_->rank() == 0; }
  int Serve();
  // Ends the ranks that serve this one, says what exchanges took, and disconnects. Once, at the
  // end.
  void Close(int exit_code);

  int size() const { return world_ == nullptr ? 1 : world_->size(); }          // N
  int tp() const { return group_comm_ == nullptr ? 1 : group_comm_->size(); }  // K
  // The ranks that share this leader's model; null: it has its models alone.
  ModelRanks* group() { return group_.get(); }
  // The leaders of all groups; null where there is one. Its rank 0 is rank 0 of all.
  Communicator* leaders() { return leaders_.get(); }
  // Throws Unsupported, naming the command, where ranks share models and it needs whole ones.
  void CheckSharesModels() const;

 private:
  void Arrange(int tp);
  void CheckAlike();
  void ShareOutProcessors();

  std::string command_;
  std::unique_ptr<Communicator> world_;  // Null until Open.
  std::unique_ptr<Communicator> group_comm_;
  std::unique_ptr<Communicator> leaders_;
  std::unique_ptr<ModelRanks> group_;
};

// --tp, --tp-slices and --comm-timeout.
struct RankCommandOptions {
  int64_t tp = 0;  // 0: all ranks. Ranks::Open has read it from the command line.
  int64_t slices = 0;
  int64_t timeout_s = 60;

  // This must outlive the parsing of `command`.
  void Register(CLI::App& command);
};

}  // namespace pmkvq::cli
