// Merging of neighbours until no pair merges any more. Internal to text/.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

namespace pmkvq {

// What a pair of neighbours becomes. Lower ranks merge first.
struct MergedPair {
  static constexpr uint32_t kNoRank = UINT32_MAX;  // The pair does not merge.

  uint32_t rank = kNoRank;
  int32_t value = -1;
};

// A doubly linked list in an array. A symbol that was merged into the one before it has value
// kGone.
struct MergeSymbol {
  static constexpr int32_t kGone = -1;
  static constexpr int32_t kNone = -1;  // No neighbour.

  int32_t value = kGone;
  int32_t previous = kNone;
  int32_t next = kNone;
  MergedPair with_next;  // Set by MergeLoop.
};

// Memory of a MergeLoop, which many loops in a row can share.
struct MergeBuffers {
  std::vector<MergeSymbol> symbols;
  std::vector<uint64_t> queue;
};

// `Pairs` has `MergedPair Find(int32_t position, int32_t left, int32_t right)`: the pair of symbols
// with these values of which the left one is at `position` of the array.
//
// O(n log n) for n symbols.
template <class Pairs>
class MergeLoop {
 public:
  // `buffers->symbols`: those in the list have their neighbours set. Outlives this.
  MergeLoop(Pairs pairs, MergeBuffers* buffers)
      : pairs_(std::move(pairs)), symbols_(buffers->symbols), queue_(buffers->queue) {
    queue_.clear();
    for (size_t i = 0; i < symbols_.size(); ++i) {
      if (symbols_[i].value == MergeSymbol::kGone) continue;
      const auto position = static_cast<int32_t>(i);
      FindPair(position);
      if (symbols_[i].with_next.rank != MergedPair::kNoRank) queue_.push_back(Candidate(position));
    }
    std::make_heap(queue_.begin(), queue_.end(), std::greater<>());
  }

  // Merges the pair of the lowest rank, the leftmost of equals, until none is left.
  void Run() {
    while (!queue_.empty()) {
      const uint64_t candidate = queue_.front();
      std::pop_heap(queue_.begin(), queue_.end(), std::greater<>());
      queue_.pop_back();
      const auto position = static_cast<int32_t>(candidate & 0xffffffffu);
      // Candidates are not taken out when one of their symbols changes.
      if (At(position).with_next.rank == MergedPair::kNoRank || Candidate(position) != candidate) {
        continue;
      }
      Apply(position);
    }
  }

  const Pairs& pairs() const { return pairs_; }

 private:
  MergeSymbol& At(int32_t position) { return symbols_[static_cast<size_t>(position)]; }

  uint64_t Candidate(int32_t position) {
    return uint64_t{At(position).with_next.rank} << 32 | static_cast<uint32_t>(position);
  }

  void FindPair(int32_t position) {
    MergeSymbol& symbol = At(position);
    symbol.with_next = symbol.next == MergeSymbol::kNone
                           ? MergedPair{}
                           : pairs_.Find(position, symbol.value, At(symbol.next).value);
  }

  void Apply(int32_t position) {
    MergeSymbol& left = At(position);
    MergeSymbol& right = At(left.next);
    left.value = left.with_next.value;
    left.next = right.next;
    right = MergeSymbol{};
    if (left.next != MergeSymbol::kNone) At(left.next).previous = position;
    if (left.previous != MergeSymbol::kNone) Push(left.previous);
    Push(position);
  }

  void Push(int32_t position) {
    FindPair(position);
    if (At(position).with_next.rank == MergedPair::kNoRank) return;
    queue_.push_back(Candidate(position));
    std::push_heap(queue_.begin(), queue_.end(), std::greater<>());
  }

  Pairs pairs_;
  std::vector<MergeSymbol>& symbols_;
  std::vector<uint64_t>& queue_;  // A heap of rank << 32 | position.
};

}  // namespace pmkvq
