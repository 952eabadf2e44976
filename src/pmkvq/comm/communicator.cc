#include "pmkvq/comm/communicator.h"

#include <chrono>
#include <cstring>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/comm/sum_tree.h"

namespace pmkvq {

namespace {

using Clock = std::chrono::steady_clock;

}  // namespace

// An exchange in progress, for totals and the watchdog.
class Communicator::Operation {
 public:
  Operation(Communicator* comm, const char* name, size_t sent, size_t received)
      : comm_(comm), begin_(Clock::now()) {
    ++comm->totals_.exchanges;
    comm->totals_.bytes_sent += static_cast<int64_t>(sent);
    comm->totals_.bytes_received += static_cast<int64_t>(received);
    comm->num_begun_.fetch_add(1, std::memory_order_acq_rel);
    comm->operation_.store(name, std::memory_order_release);
  }
  ~Operation() {
    comm_->operation_.store(nullptr, std::memory_order_release);
    comm_->totals_.seconds += std::chrono::duration<double>(Clock::now() - begin_).count();
  }
  Operation(const Operation&) = delete;
  Operation& operator=(const Operation&) = delete;

 private:
  Communicator* comm_;
  Clock::time_point begin_;
};

void Communicator::SumInOrder(float* values, int64_t n) {
  if (size_ == 1 || n == 0) return;
  const auto ranks = static_cast<size_t>(size_);
  const auto bytes = static_cast<size_t>(n) * sizeof(float);
  if (n * static_cast<int64_t>(sizeof(float)) <= kOneStepBytes) {
    const Operation operation(this, "sum", bytes * (ranks - 1), bytes * (ranks - 1));
    if (gathered_.size() < static_cast<size_t>(n) * ranks) {
      gathered_.resize(static_cast<size_t>(n) * ranks);
    }
    DoAllGather(values, bytes, gathered_.data());
    AddInTree(gathered_.data(), 0, size_, n, n);
    std::memcpy(values, gathered_.data(), bytes);
    return;
  }
  // Whole slices on all ranks: the last ones are padded with zeros that nobody reads.
  const int64_t slice = (n + size_ - 1) / size_;
  const auto padded = static_cast<size_t>(slice) * ranks;
  const auto slice_bytes = static_cast<size_t>(slice) * sizeof(float);
  const Operation operation(this, "sum", 2 * slice_bytes * (ranks - 1),
                            2 * slice_bytes * (ranks - 1));
  if (gathered_.size() < padded) gathered_.resize(padded);
  if (slices_.size() < padded) slices_.resize(padded);
  std::memcpy(slices_.data(), values, bytes);
  std::memset(slices_.data() + n, 0, (padded - static_cast<size_t>(n)) * sizeof(float));
  DoAllToAll(slices_.data(), slice_bytes, gathered_.data());
  AddInTree(gathered_.data(), 0, size_, slice, slice);
  DoAllGather(gathered_.data(), slice_bytes, slices_.data());
  std::memcpy(values, slices_.data(), bytes);
}

void Communicator::AllGather(const void* part, size_t bytes, void* all) {
  void* mine = static_cast<char*>(all) + static_cast<size_t>(rank_) * bytes;
  if (size_ == 1) {
    if (mine != part && bytes > 0) std::memcpy(mine, part, bytes);
    return;
  }
  const auto others = static_cast<size_t>(size_ - 1);
  const Operation operation(this, "all-gather", bytes * others, bytes * others);
  DoAllGather(part, bytes, all);
}

void Communicator::Gather(const void* part, size_t bytes, void* all, int root) {
  PMKVQ_CHECK(root >= 0 && root < size_);
  if (size_ == 1) {
    if (all != part && bytes > 0) std::memcpy(all, part, bytes);
    return;
  }
  const bool is_root = rank_ == root;
  const Operation operation(this, "gather", is_root ? 0 : bytes,
                            is_root ? bytes * static_cast<size_t>(size_ - 1) : 0);
  const std::vector<size_t> sizes(static_cast<size_t>(size_), bytes);
  DoGather(part, sizes, all, root);
}

std::vector<std::string> Communicator::GatherStrings(std::string_view part, int root) {
  PMKVQ_CHECK(root >= 0 && root < size_);
  if (size_ == 1) return {std::string(part)};
  const size_t mine = part.size();
  std::vector<size_t> sizes(static_cast<size_t>(size_));
  AllGather(&mine, sizeof(mine), sizes.data());
  size_t total = 0;
  for (const size_t size : sizes) total += size;
  const bool is_root = rank_ == root;
  const Operation operation(this, "gather", is_root ? 0 : mine, is_root ? total - mine : 0);
  std::string all(is_root ? total : 0, '\0');
  DoGather(part.data(), sizes, all.data(), root);
  std::vector<std::string> parts;
  if (!is_root) return parts;
  size_t begin = 0;
  for (const size_t size : sizes) {
    parts.push_back(all.substr(begin, size));
    begin += size;
  }
  return parts;
}

void Communicator::Broadcast(void* data, size_t bytes, int root) {
  PMKVQ_CHECK(root >= 0 && root < size_);
  if (size_ == 1 || bytes == 0) return;
  const bool is_root = rank_ == root;
  const Operation operation(this, "broadcast", is_root ? bytes : 0, is_root ? 0 : bytes);
  DoBroadcast(data, bytes, root, /*patient=*/false);
}

void Communicator::BroadcastString(std::string* text, int root) {
  PMKVQ_CHECK(root >= 0 && root < size_);
  if (size_ == 1) return;
  if (rank_ != root) return ReceiveString(text, root, /*patient=*/false);
  const Operation operation(this, "broadcast", text->size() + sizeof(uint64_t), 0);
  uint64_t size = text->size();
  DoBroadcast(&size, sizeof(size), root, /*patient=*/false);
  if (size > 0) DoBroadcast(text->data(), text->size(), root, /*patient=*/false);
}

void Communicator::WaitForString(std::string* text, int root) {
  PMKVQ_CHECK(root >= 0 && root < size_ && (root != rank_ || size_ == 1));
  if (size_ > 1) ReceiveString(text, root, /*patient=*/true);
}

void Communicator::ReceiveString(std::string* text, int root, bool patient) {
  uint64_t size = 0;
  if (patient) {
    DoBroadcast(&size, sizeof(size), root, /*patient=*/true);
  }
  const Operation operation(this, "broadcast", 0, 0);
  if (!patient) DoBroadcast(&size, sizeof(size), root, /*patient=*/false);
  text->resize(size);
  if (size > 0) DoBroadcast(text->data(), text->size(), root, /*patient=*/false);
  totals_.bytes_received += static_cast<int64_t>(size + sizeof(size));
}

void Communicator::Barrier() {
  if (size_ == 1) return;
  const Operation operation(this, "barrier", 0, 0);
  DoBarrier();
}

bool Communicator::AllTrue(bool mine) {
  const char value = mine ? 1 : 0;
  std::string all(static_cast<size_t>(size_), '\0');
  AllGather(&value, 1, all.data());
  return all.find('\0') == std::string::npos;
}

std::unique_ptr<Communicator> SingleCommunicator::Split(int /*color*/, int /*key*/) {
  return std::make_unique<SingleCommunicator>();
}
void SingleCommunicator::Abort(const std::string& message) { throw IoError("comm", message); }

// With one rank the base class never asks the transport.
void SingleCommunicator::DoAllGather(const void*, size_t, void*) { PMKVQ_CHECK(false); }
void SingleCommunicator::DoAllToAll(const void*, size_t, void*) { PMKVQ_CHECK(false); }
void SingleCommunicator::DoGather(const void*, std::span<const size_t>, void*, int) {
  PMKVQ_CHECK(false);
}
void SingleCommunicator::DoBroadcast(void*, size_t, int, bool) { PMKVQ_CHECK(false); }
void SingleCommunicator::DoBarrier() { PMKVQ_CHECK(false); }

}  // namespace pmkvq
