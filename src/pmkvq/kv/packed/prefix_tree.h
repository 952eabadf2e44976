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
  int64_t bytes = 0;              // Counted for them.
};

class PrefixTree {
 public:
  using NodeId = int64_t;
  static constexpr NodeId kRoot = 0;

  // chunk_tokens >= 1: tokens of a node.
  explicit PrefixTree(int64_t chunk_tokens) : chunk_tokens_(chunk_tokens) {}

  // Nodes of the longest beginning of `tokens` that is kept, in order; whole chunks only. Marks
  // them as used now. Cost O(tokens).
  std::vector<NodeId> Use(std::string_view salt, std::span<const int32_t> tokens);
  // Adds the chunk [chunk_tokens] behind `parent` (kRoot: a first chunk), which no node has yet.
  // Used now.
  NodeId Add(NodeId parent, std::string_view salt, std::span<const int32_t> chunk, KeptChunk kept);

  // The node without children that was not used for the longest time; kRoot: there is none.
  NodeId OldestLeaf() const { return leaves_.empty() ? kRoot : leaves_.begin()->second; }
  // Whether it has been used since before the last Use or Add.
  bool IsUsedNow(NodeId node) const { return At(node).used_at == clock_; }
  // Takes out a node without children.
  KeptChunk Remove(NodeId leaf);

  const KeptChunk& Kept(NodeId node) const { return At(node).kept; }
  int64_t chunk_tokens() const { return chunk_tokens_; }
  int64_t num_nodes() const { return std::ssize(nodes_); }

 private:
  struct Node {
    NodeId parent = kRoot;
    std::string salt;  // Of first chunks; else "".
    std::vector<int32_t> tokens;
    std::string hash;
    int64_t used_at = 0;
    int64_t num_children = 0;
    KeptChunk kept;
  };
  const Node& At(NodeId node) const { return nodes_.at(node); }
  // kRoot: there is none.
  NodeId Find(NodeId parent, std::string_view salt, std::span<const int32_t> chunk) const;

  int64_t chunk_tokens_;
  int64_t clock_ = 0;
  NodeId next_id_ = 1;
  std::unordered_map<NodeId, Node> nodes_;
  std::unordered_multimap<std::string, NodeId> by_hash_;
  std::set<std::pair<int64_t, NodeId>> leaves_;  // By used_at.
};

}  // namespace pmkvq
