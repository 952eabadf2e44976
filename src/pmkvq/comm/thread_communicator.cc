#include "pmkvq/comm/thread_communicator.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <map>
#include <mutex>
#include <thread>

#include "pmkvq/base/error.h"

namespace pmkvq {
namespace {

class ThreadCommunicator;

// What the ranks share. Exchanges are: everybody shows a pointer, waits for all, copies, waits
// again.
struct Group {
  explicit Group(int size_in) : size(size_in), shown(static_cast<size_t>(size_in)) {}

  void Wait() {
    std::unique_lock lock(mutex);
    if (failed) throw IoError("comm", failure);
    const int64_t mine = generation;
    if (++arrived == size) {
      arrived = 0;
      ++generation;
      all_here.notify_all();
      return;
    }
    all_here.wait(lock, [&] { return generation != mine || failed; });
    if (generation == mine) throw IoError("comm", failure);
  }
  void Fail(const std::string& message) {
    const std::lock_guard lock(mutex);
    if (!failed) failure = message;
    failed = true;
    all_here.notify_all();
  }

  const int size;
  std::vector<const void*> shown;  // Written by its rank before a Wait, read behind it.
  std::mutex mutex;
  std::condition_variable all_here;
  int arrived = 0;
  int64_t generation = 0;
  bool failed = false;
  std::string failure;
};

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(int rank, std::shared_ptr<Group> group)
      : Communicator(rank, group->size), group_(std::move(group)) {}

  std::unique_ptr<Communicator> Split(int color, int key) override {
    struct Place {
      int color, key, rank;
      std::shared_ptr<Group> group;  // Of the color's first rank.
    } mine{color, key, rank(), nullptr};
    group_->shown[Index(rank())] = &mine;
    group_->Wait();
    std::vector<Place*> same;
    for (int r = 0; r < size(); ++r) {
      // The ranks' places are theirs until the last Wait; only the first of a color is written to.
      auto* place = static_cast<Place*>(const_cast<void*>(group_->shown[Index(r)]));
      if (place->color == color) same.push_back(place);
    }
    std::stable_sort(same.begin(), same.end(),
                     [](const Place* a, const Place* b) { return a->key < b->key; });
    if (same.front() == &mine) mine.group = std::make_shared<Group>(static_cast<int>(same.size()));
    group_->Wait();
    const std::shared_ptr<Group> group = same.front()->group;
    const auto place = std::find(same.begin(), same.end(), &mine) - same.begin();
    group_->Wait();
    return std::make_unique<ThreadCommunicator>(static_cast<int>(place), group);
  }

  [[noreturn]] void Abort(const std::string& message) override {
    const std::string text =
        "rank " + std::to_string(rank()) + " of " + std::to_string(size()) + ": " + message;
    group_->Fail(text);
    throw IoError("comm", text);
  }
  const char* transport() const override { return "threads"; }

 protected:
  void DoAllGather(const void* part, size_t bytes, void* all) override {
    // A rank may receive into the array that it shows, at the shown place only.
    group_->shown[Index(rank())] = part;
    group_->Wait();
    for (int r = 0; r < size(); ++r) {
      char* to = static_cast<char*>(all) + Index(r) * bytes;
      if (to != group_->shown[Index(r)] && bytes > 0)
        std::memcpy(to, group_->shown[Index(r)], bytes);
    }
    group_->Wait();
  }
  void DoAllToAll(const void* parts, size_t bytes, void* all) override {
    group_->shown[Index(rank())] = parts;
    group_->Wait();
    for (int r = 0; r < size(); ++r) {
      std::memcpy(static_cast<char*>(all) + Index(r) * bytes,
                  static_cast<const char*>(group_->shown[Index(r)]) + Index(rank()) * bytes, bytes);
    }
    group_->Wait();
  }
  void DoGather(const void* part, std::span<const size_t> sizes, void* all, int root) override {
    group_->shown[Index(rank())] = part;
    group_->Wait();
    if (rank() == root) {
      size_t begin = 0;
      for (int r = 0; r < size(); ++r) {
        const size_t bytes = sizes[Index(r)];
        char* to = static_cast<char*>(all) + begin;
        if (bytes > 0 && to != group_->shown[Index(r)]) {
          std::memcpy(to, group_->shown[Index(r)], bytes);
        }
        begin += bytes;
      }
    }
    group_->Wait();
  }
  void DoBroadcast(void* data, size_t bytes, int root, bool /*patient*/) override {
    group_->shown[Index(rank())] = data;
    group_->Wait();
    if (rank() != root) std::memcpy(data, group_->shown[Index(root)], bytes);
    group_->Wait();
  }
  void DoBarrier() override { group_->Wait(); }

 private:
  static size_t Index(int rank) { return static_cast<size_t>(rank); }

  std::shared_ptr<Group> group_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> ThreadCommunicators(int num_ranks) {
  if (num_ranks == 1) {
    std::vector<std::unique_ptr<Communicator>> one;
    one.push_back(std::make_unique<SingleCommunicator>());
    return one;
  }
  const auto group = std::make_shared<Group>(num_ranks);
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (int rank = 0; rank < num_ranks; ++rank) {
    ranks.push_back(std::make_unique<ThreadCommunicator>(rank, group));
  }
  return ranks;
}

void RunRanks(int num_ranks, const std::function<void(Communicator&)>& body) {
  const auto ranks = ThreadCommunicators(num_ranks);
  std::mutex mutex;
  std::exception_ptr first;
  std::vector<std::thread> threads;
  for (const auto& comm : ranks) {
    threads.emplace_back([&, rank = comm.get()] {
      try {
        body(*rank);
      } catch (const std::exception& error) {
        {
          const std::lock_guard lock(mutex);
          if (!first) first = std::current_exception();
        }
        try {
          rank->Abort(error.what());
        } catch (const Error&) {
          // Abort throws where ranks are threads.
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (first) std::rethrow_exception(first);
}

}  // namespace pmkvq
