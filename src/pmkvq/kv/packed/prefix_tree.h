// Which chunks of prompts a pool keeps, found by their tokens. A node is one chunk behind the node
// before it, and holds the pages that its tokens lie in. Knows no memory: who removes a node has to
// give up its pages (PageStore::DropKept).
//
// A hash finds candidates only; tokens are compared. Beginnings with different salts are different
// trees: whoever has one salt cannot learn what another one has sent, nor how long it took.
//
// Threads: not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "pmkvq/kv/packed/stored_page.h"

namespace pmkvq {

// Pages of one block of a chunk, and, of the first chunk, the sink.
struct KeptBlock {
  std::vector<PagePair> pages;
  std::vector<SlotHandle> sink;
};

struct KeptChunk {
  size_t first_page = 0;          // Of `pages` of each block, in a sequence.
  std::vector<KeptBlock> blocks;  // By layer; empty ones of blocks without cache.
  int64_t bytes = 0;              // Of all its pages and the sink, whoever else has them.
  // Of the pages of each block, the first ones: those that all lie in this chunk and those before
  // it. The page behind them, if there is one, goes on in the next chunk.
  size_t num_full = 0;
  std::vector<int64_t> columns;  // Numbers of the full pages (SequencePages::columns).
  // Of the narrowest full page, but for those whose floors are higher; 16: none was halved.
  // 0: they cannot be read, since the bounds of a group do not fit the float type.
  int bits = 16;
};

class PrefixTree {
 public:
  using NodeId = int64_t;
  static constexpr NodeId kRoot = 0;

  // chunk_tokens >= 1: tokens of a node.
  explicit PrefixTree(int64_t chunk_tokens) : chunk_tokens_(chunk_tokens) {}

  // Nodes of the longest beginning of `tokens` that is kept, in order; whole chunks only. Marks
  // them as used now, which is `now_s`, seconds of any steady clock. Cost O(tokens).
  std::vector<NodeId> Use(std::string_view salt, std::span<const int32_t> tokens, double now_s);
  // Adds the chunk [chunk_tokens] behind `parent` (kRoot: a first chunk), which no node has yet.
  // Used now.
  NodeId Add(NodeId parent, std::string_view salt, std::span<const int32_t> chunk, KeptChunk kept);

  // The node without children that was not used for the longest time, of those that `can_go`;
  // kRoot: there is none.
  NodeId OldestLeaf() const { return leaves_.empty() ? kRoot : leaves_.begin()->second; }
  using Condition = std::function<bool(const KeptChunk&)>;
  NodeId OldestLeaf(const Condition& can_go) const;
  // Whether it has been used since before the last Use or Add.
  bool IsUsedNow(NodeId node) const { return At(node).used_at == clock_; }
  // Takes out a node without children.
  KeptChunk Remove(NodeId leaf);
  // The node whose pages are to be halved next, of those that were not used since `before_s`, are
  // wider than `least_bits` and that `can_be_halved`: the widest, and of these the one unused for
  // the longest time. kRoot: there is none. Cost O(nodes).
  NodeId NextToHalve(int least_bits, double before_s, const Condition& can_be_halved) const;
  // How many of the first nodes of this path can be read at `least_bits` or more.
  size_t NumReadable(std::span<const NodeId> path, int least_bits) const;

  const KeptChunk& Kept(NodeId node) const { return At(node).kept; }
  KeptChunk& Kept(NodeId node) { return nodes_.at(node).kept; }
  int64_t chunk_tokens() const { return chunk_tokens_; }
  int64_t num_nodes() const { return std::ssize(nodes_); }

 private:
  struct Node {
    NodeId parent = kRoot;
    std::string salt;  // Of first chunks; else "".
    std::vector<int32_t> tokens;
    std::string hash;
    int64_t used_at = 0;
    double used_at_s = 0;
    int64_t num_children = 0;
    KeptChunk kept;
  };
  const Node& At(NodeId node) const { return nodes_.at(node); }
  // kRoot: there is none.
  NodeId Find(NodeId parent, std::string_view salt, std::span<const int32_t> chunk) const;

  int64_t chunk_tokens_;
  int64_t clock_ = 0;
  double now_s_ = 0;  // Of the last Use.
  NodeId next_id_ = 1;
  std::unordered_map<NodeId, Node> nodes_;
  std::unordered_multimap<std::string, NodeId> by_hash_;
  std::set<std::pair<int64_t, NodeId>> leaves_;  // By used_at.
};

}  // namespace pmkvq
