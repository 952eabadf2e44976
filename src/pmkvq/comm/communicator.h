// Ranks: processes (or, in tests, threads) that compute one thing together.
//
// A Communicator is the only way in which ranks exchange anything. SingleCommunicator is one rank,
// ThreadGroup (comm/thread_communicator.h) has threads of one process as ranks, and
// OpenCommunicator (comm/launch.h) gives the ranks that mpirun or srun started.
//
// Every function below is collective: all ranks call the same functions in the same order, with
// sizes that match. A rank that does something else makes the others wait until the watchdog
// (comm/watchdog.h) ends them.
// Threads: one at a time, which may be another one the next time (MPI_THREAD_SERIALIZED).
// Errors: IoError when an exchange fails; the ranks then cannot go on together, so the caller ends
// with Abort. A function that returns has done its part on this rank, not on all of them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace pmkvq {

// What exchanges have cost this rank so far.
struct CommTotals {
  int64_t exchanges = 0;
  int64_t bytes_sent = 0;      // By this rank, without headers.
  int64_t bytes_received = 0;  // By this rank, without headers.
  double seconds = 0;  // In exchanges, with waiting for slower ranks; not in WaitForBroadcast.
};

class Communicator {
 public:
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }

  // values <- the sum over all ranks, bit-equal on all of them and from run to run.
  //
  // The order of the additions is the tree of AddInTree (comm/sum_tree.h) over the ranks: for 2^k
  // ranks neighbours first, then neighbouring pairs. It depends neither on the transport nor on the
  // number of values. Up to kOneStepBytes every rank gets all parts and adds them; above, every
  // rank adds one slice, and the sums are gathered (2 (P - 1) / P of the bytes, as in a ring). All
  // ranks pass the same number of values. Allocates when n exceeds that of all calls before.
  void SumInOrder(float* values, int64_t n);

  // all[r] <- part of rank r, on every rank. `bytes` is the same on all ranks; `all` has size() *
  // bytes. `part` may be the place of this rank in `all`.
  void AllGather(const void* part, size_t bytes, void* all);

  // all[r] <- part of rank r, on rank `root`; `bytes` is the same on all ranks. `all` has size() *
  // bytes there and is ignored elsewhere.
  void Gather(const void* part, size_t bytes, void* all, int root = 0);

  // The parts of all ranks in their order, which may differ in size, on `root`; empty elsewhere.
  std::vector<std::string> GatherStrings(std::string_view part, int root = 0);

  // data of `root` on every rank. `bytes` is the same on all ranks.
  void Broadcast(void* data, size_t bytes, int root = 0);
  // The same for text whose size only `root` knows; the other ranks' text is replaced.
  void BroadcastString(std::string* text, int root = 0);

  // As BroadcastString on ranks other than `root`, for waiting that may take hours (a server
  // without requests): sleeps between looks at the network, and neither CommTotals nor the watchdog
  // count it. `root` calls BroadcastString.
  void WaitForString(std::string* text, int root = 0);

  // Returns when all ranks have called it.
  void Barrier();

  // True on all ranks when `mine` is true on all ranks.
  bool AllTrue(bool mine);

  // The ranks that pass the same `color`, ordered by (key, rank), as a communicator of their own.
  // Must not outlive this one. Its exchanges are independent of this one's.
  virtual std::unique_ptr<Communicator> Split(int color, int key) = 0;

  // Ends all ranks: prints "error: rank R of P (HOST): message" and ends the processes with exit
  // code
  // 1. Threads as ranks: every rank's current or next exchange throws IoError with the message, and
  // so does this function. Not collective.
  [[noreturn]] virtual void Abort(const std::string& message) = 0;

  // The name of the transport: "one rank", "threads", "mpi".
  virtual const char* transport() const = 0;

  const CommTotals& totals() const { return totals_; }

  // The exchange that this rank is in, for the watchdog; null between exchanges. Any thread.
  const char* current_operation() const { return operation_.load(std::memory_order_acquire); }
  // Exchanges begun so far. Any thread.
  int64_t num_begun() const { return num_begun_.load(std::memory_order_acquire); }

  // Sums of up to this many bytes are one all-gather: one latency instead of two, while the bytes
  // of all parts still cost less than the second one.
  static constexpr int64_t kOneStepBytes = 64 << 10;

 protected:
  Communicator(int rank, int size) : rank_(rank), size_(size) {}

  // What a transport does; size() > 1 is given. Throw IoError.
  virtual void DoAllGather(const void* part, size_t bytes, void* all) = 0;
  // all[r] <- the rank()-th piece of rank r's `parts`; size() pieces of `bytes` in both.
  virtual void DoAllToAll(const void* parts, size_t bytes, void* all) = 0;
  // sizes[r] bytes of rank r go behind each other into `all`, on `root`.
  virtual void DoGather(const void* part, std::span<const size_t> sizes, void* all, int root) = 0;
  // `patient`: may wait for hours, and then sleeps.
  virtual void DoBroadcast(void* data, size_t bytes, int root, bool patient) = 0;
  virtual void DoBarrier() = 0;

 private:
  class Operation;
  void ReceiveString(std::string* text, int root, bool patient);

  const int rank_;
  const int size_;
  CommTotals totals_;
  std::vector<float> gathered_;  // Parts of SumInOrder.
  std::vector<float> slices_;
  std::atomic<const char*> operation_{nullptr};
  std::atomic<int64_t> num_begun_{0};
};

// One rank: no exchange does anything.
class SingleCommunicator final : public Communicator {
 public:
  SingleCommunicator() : Communicator(0, 1) {}
  std::unique_ptr<Communicator> Split(int color, int key) override;
  // Throws IoError.
  [[noreturn]] void Abort(const std::string& message) override;
  const char* transport() const override { return "one rank"; }

 protected:
  void DoAllGather(const void* part, size_t bytes, void* all) override;
  void DoAllToAll(const void* parts, size_t bytes, void* all) override;
  void DoGather(const void* part, std::span<const size_t> sizes, void* all, int root) override;
  void DoBroadcast(void* data, size_t bytes, int root, bool patient) override;
  void DoBarrier() override;
};

}  // namespace pmkvq
