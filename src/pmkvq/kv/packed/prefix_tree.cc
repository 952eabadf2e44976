#include "pmkvq/kv/packed/prefix_tree.h"

#include <algorithm>
#include <tuple>

#include "pmkvq/base/check.h"
#include "pmkvq/io/hash.h"

namespace pmkvq {
namespace {

std::string HashOf(PrefixTree::NodeId parent, std::string_view salt,
                   std::span<const int32_t> chunk) {
  Hash128 hash;
  hash.Update(&parent, sizeof(parent));
  if (parent == PrefixTree::kRoot) hash.Update(salt.data(), salt.size());
  hash.Update(chunk.data(), chunk.size_bytes());
  return hash.HexDigest();
}

}  // namespace

PrefixTree::NodeId PrefixTree::Find(NodeId parent, std::string_view salt,
                                    std::span<const int32_t> chunk) const {
  const auto [begin, end] = by_hash_.equal_range(HashOf(parent, salt, chunk));
  for (auto it = begin; it != end; ++it) {
    const Node& node = At(it->second);
    if (node.parent == parent && (parent != kRoot || node.salt == salt) &&
        std::equal(chunk.begin(), chunk.end(), node.tokens.begin(), node.tokens.end())) {
      return it->second;
    }
  }
  return kRoot;
}

std::vector<PrefixTree::NodeId> PrefixTree::Use(std::string_view salt,
                                                std::span<const int32_t> tokens, double now_s) {
  std::vector<NodeId> path;
  ++clock_;
  now_s_ = now_s;
  NodeId parent = kRoot;
  for (size_t begin = 0; begin + static_cast<size_t>(chunk_tokens_) <= tokens.size();
       begin += static_cast<size_t>(chunk_tokens_)) {
    const NodeId id = Find(parent, salt, tokens.subspan(begin, static_cast<size_t>(chunk_tokens_)));
    if (id == kRoot) break;
    Node& node = nodes_.at(id);
    if (node.num_children == 0) {
      leaves_.erase({node.used_at, id});
      leaves_.insert({clock_, id});
    }
    node.used_at = clock_;
    node.used_at_s = now_s;
    path.push_back(id);
    parent = id;
  }
  return path;
}

PrefixTree::NodeId PrefixTree::Add(NodeId parent, std::string_view salt,
                                   std::span<const int32_t> chunk, KeptChunk kept) {
  PMKVQ_CHECK(std::ssize(chunk) == chunk_tokens_);
  PMKVQ_DCHECK(Find(parent, salt, chunk) == kRoot);
  const NodeId id = next_id_++;
  Node node;
  node.parent = parent;
  if (parent == kRoot) node.salt = salt;
  node.tokens.assign(chunk.begin(), chunk.end());
  node.hash = HashOf(parent, salt, chunk);
  node.used_at = clock_;
  node.used_at_s = now_s_;
  node.kept = std::move(kept);
  if (parent != kRoot) {
    Node& above = nodes_.at(parent);
    if (above.num_children++ == 0) leaves_.erase({above.used_at, parent});
  }
  by_hash_.emplace(node.hash, id);
  leaves_.insert({node.used_at, id});
  nodes_.emplace(id, std::move(node));
  return id;
}

PrefixTree::NodeId PrefixTree::OldestLeaf(const Condition& can_go) const {
  const auto found = std::find_if(leaves_.begin(), leaves_.end(),
                                  [&](const auto& leaf) { return can_go(At(leaf.second).kept); });
  return found == leaves_.end() ? kRoot : found->second;
}

PrefixTree::NodeId PrefixTree::NextToHalve(int least_bits, double before_s,
                                           const Condition& can_be_halved) const {
  NodeId next = kRoot;
  const auto order = [](const Node& node, NodeId id) {
    return std::tuple(-node.kept.bits, node.used_at, id);
  };
  for (const auto& [id, node] : nodes_) {
    if (node.used_at_s >= before_s || node.kept.bits <= least_bits) continue;
    if (!can_be_halved(node.kept)) continue;
    if (next == kRoot || order(node, id) < order(At(next), next)) next = id;
  }
  return next;
}

size_t PrefixTree::NumReadable(std::span<const NodeId> path, int least_bits) const {
  size_t count = 0;
  while (count < path.size() && At(path[count]).kept.bits >= least_bits) ++count;
  return count;
}

KeptChunk PrefixTree::Remove(NodeId leaf) {
  const auto found = nodes_.find(leaf);
  PMKVQ_CHECK(found != nodes_.end() && found->second.num_children == 0);
  const Node& node = found->second;
  leaves_.erase({node.used_at, leaf});
  const auto [begin, end] = by_hash_.equal_range(node.hash);
  by_hash_.erase(std::find_if(begin, end, [&](const auto& entry) { return entry.second == leaf; }));
  if (node.parent != kRoot) {
    Node& above = nodes_.at(node.parent);
    if (--above.num_children == 0) leaves_.insert({above.used_at, node.parent});
  }
  KeptChunk kept = std::move(found->second.kept);
  nodes_.erase(found);
  return kept;
}

}  // namespace pmkvq
