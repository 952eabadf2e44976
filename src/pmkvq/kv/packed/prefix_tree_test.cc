#include "pmkvq/kv/packed/prefix_tree.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <map>

namespace pmkvq {
namespace {

using Tokens = std::vector<int32_t>;

// Adds the whole chunks of `tokens`; returns the nodes of all of them.
std::vector<PrefixTree::NodeId> AddAll(PrefixTree& tree, const std::string& salt,
                                       const Tokens& tokens) {
  std::vector<PrefixTree::NodeId> path = tree.Use(salt, tokens, 0);
  const auto chunk = static_cast<size_t>(tree.chunk_tokens());
  for (size_t begin = path.size() * chunk; begin + chunk <= tokens.size(); begin += chunk) {
    const PrefixTree::NodeId parent = path.empty() ? PrefixTree::kRoot : path.back();
    path.push_back(tree.Add(parent, salt, std::span(tokens).subspan(begin, chunk), {}));
  }
  return path;
}

TEST(PrefixTreeTest, FindsTheLongestBeginningInWholeChunks) {
  PrefixTree tree(2);
  const auto path = AddAll(tree, "", {1, 2, 3, 4, 5});
  EXPECT_EQ(path.size(), 2u);
  EXPECT_EQ(tree.Use("", Tokens{1, 2, 3, 4, 5, 6}, 0), path);
  EXPECT_EQ(tree.Use("", Tokens{1, 2, 3}, 0), (std::vector{path[0]}));
  EXPECT_EQ(tree.Use("", Tokens{1, 2, 4, 3}, 0), (std::vector{path[0]}));
  EXPECT_TRUE(tree.Use("", Tokens{2, 1, 3, 4}, 0).empty());
  EXPECT_TRUE(tree.Use("", Tokens{3, 4}, 0).empty()) << "a later chunk begins no prompt";
}

TEST(PrefixTreeTest, AnotherSaltSeesNothing) {
  PrefixTree tree(2);
  AddAll(tree, "a", {1, 2, 3, 4});
  EXPECT_TRUE(tree.Use("", Tokens{1, 2, 3, 4}, 0).empty());
  EXPECT_TRUE(tree.Use("b", Tokens{1, 2}, 0).empty());
  AddAll(tree, "b", {1, 2, 3, 4});
  EXPECT_EQ(tree.num_nodes(), 4);
}

TEST(PrefixTreeTest, LeavesGoFirstInOrderOfUse) {
  PrefixTree tree(1);
  const auto first = AddAll(tree, "", {1, 2});
  const auto second = AddAll(tree, "", {1, 3});
  ASSERT_EQ(first[0], second[0]);
  EXPECT_EQ(tree.OldestLeaf(), first[1]);
  tree.Kept(first[1]).bits = 8;
  EXPECT_EQ(tree.OldestLeaf([](const KeptChunk& kept) { return kept.bits == 16; }), second[1]);
  EXPECT_EQ(tree.OldestLeaf([](const KeptChunk& kept) { return kept.bits == 4; }),
            PrefixTree::kRoot);
  tree.Use("", Tokens{1, 2}, 0);
  EXPECT_TRUE(tree.IsUsedNow(first[1]));
  EXPECT_EQ(tree.OldestLeaf(), second[1]);
  tree.Remove(second[1]);
  EXPECT_EQ(tree.OldestLeaf(), first[1]);
  tree.Remove(first[1]);
  EXPECT_EQ(tree.OldestLeaf(), first[0]);
  tree.Remove(first[0]);
  EXPECT_EQ(tree.OldestLeaf(), PrefixTree::kRoot);
  EXPECT_EQ(tree.num_nodes(), 0);
}

// Widest first, then those unused longest, then the first chunks.
TEST(PrefixTreeTest, WhatIsIdleIsHalvedFromItsFirstChunkOn) {
  PrefixTree tree(1);
  const auto any = [](const KeptChunk&) { return true; };
  const auto use = [&](const Tokens& tokens, double now_s) { tree.Use("", tokens, now_s); };
  const auto first = AddAll(tree, "", {1, 2});
  const auto second = AddAll(tree, "", {7});
  use({7}, 5);
  use({1, 2}, 6);
  EXPECT_EQ(tree.NextToHalve(8, 5, any), PrefixTree::kRoot)
      << "not before the time of its last use";
  EXPECT_EQ(tree.NextToHalve(8, 5.5, any), second[0]);
  EXPECT_EQ(tree.NextToHalve(16, 100, any), PrefixTree::kRoot) << "none is wider than 16";
  const auto halve = [&](PrefixTree::NodeId node) { tree.Kept(node).bits /= 2; };
  for (const PrefixTree::NodeId next :
       {second[0], first[0], first[1], second[0], first[0], first[1]}) {
    ASSERT_EQ(tree.NextToHalve(2, 100, any), next);
    halve(next);
  }
  EXPECT_EQ(tree.NextToHalve(4, 100, any), PrefixTree::kRoot) << "all are at 4";
  use({1}, 100);
  use({7}, 100);
  EXPECT_EQ(tree.NextToHalve(2, 100, any), first[1]) << "the others are in use";
  const auto none = [](const KeptChunk&) { return false; };
  EXPECT_EQ(tree.NextToHalve(2, 100, none), PrefixTree::kRoot);
  tree.Kept(first[1]).bits = 0;
  EXPECT_EQ(tree.NextToHalve(2, 101, any), first[0]);
  tree.Kept(first[0]).bits = 0;
  EXPECT_EQ(tree.NextToHalve(2, 101, any), second[0]) << "what cannot be read is not halved";
}

TEST(PrefixTreeTest, APathEndsAtAChunkThatIsTooNarrow) {
  PrefixTree tree(1);
  const auto path = AddAll(tree, "", {1, 2, 3});
  const auto readable = [&](const std::vector<int>& bits, int least_bits) {
    for (size_t i = 0; i < path.size(); ++i) tree.Kept(path[i]).bits = bits[i];
    return tree.NumReadable(path, least_bits);
  };
  EXPECT_EQ(readable({16, 16, 16}, 16), 3u);
  EXPECT_EQ(readable({8, 8, 16}, 8), 3u);
  EXPECT_EQ(readable({8, 16, 16}, 16), 0u);
  EXPECT_EQ(readable({4, 8, 16}, 8), 0u);
  EXPECT_EQ(readable({4, 8, 16}, 2), 3u);
  EXPECT_EQ(readable({16, 8, 8}, 8), 3u) << "the first one was replaced";
  EXPECT_EQ(readable({16, 8, 8}, 16), 1u);
  EXPECT_EQ(readable({8, 0, 16}, 2), 1u);
  EXPECT_EQ(tree.NumReadable({}, 2), 0u);
}

// Against a map from beginnings to nodes.
RC_GTEST_PROP(PrefixTreeProperty, IsAMapOfBeginnings, ()) {
  PrefixTree tree(2);
  std::map<Tokens, PrefixTree::NodeId> model;
  for (int i = 0; i < 60; ++i) {
    const Tokens tokens = *rc::gen::container<Tokens>(rc::gen::inRange(0, 3));
    if (*rc::gen::inRange(0, 3) == 0) {
      const PrefixTree::NodeId leaf = tree.OldestLeaf();
      if (leaf == PrefixTree::kRoot) continue;
      const auto entry = std::find_if(model.begin(), model.end(),
                                      [&](const auto& one) { return one.second == leaf; });
      RC_ASSERT(entry != model.end());
      for (const auto& [key, node] : model) {
        const bool is_child = key.size() == entry->first.size() + 2 &&
                              std::equal(entry->first.begin(), entry->first.end(), key.begin());
        RC_ASSERT(!is_child);
      }
      tree.Remove(leaf);
      model.erase(entry);
      continue;
    }
    std::vector<PrefixTree::NodeId> expected;
    for (size_t end = 2; end <= tokens.size(); end += 2) {
      const auto found = model.find(Tokens(tokens.begin(), tokens.begin() + static_cast<int>(end)));
      if (found == model.end()) break;
      expected.push_back(found->second);
    }
    RC_ASSERT(tree.Use("", tokens, 0) == expected);
    const std::vector<PrefixTree::NodeId> path = AddAll(tree, "", tokens);
    for (size_t n = 0; n < path.size(); ++n) {
      model[Tokens(tokens.begin(), tokens.begin() + 2 * static_cast<int>(n + 1))] = path[n];
    }
    RC_ASSERT(tree.num_nodes() == std::ssize(model));
  }
}

}  // namespace
}  // namespace pmkvq
