// What one kind of files calls the weights that io/weights/weight_source.h names. Internal to
// io/weights/.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace pmkvq::internal {

// Where experts have tensors of their own, '*' stands for an expert's number on both sides. Where
// one tensor holds all experts, it stands in the canonical name only (expert_stacks.h).
struct NamePair {
  std::string_view stored;
  std::string_view canonical;
};

struct NameMap {
  std::string_view stored_blocks;      // Stands before a block's number: "model.layers.".
  std::span<const NamePair> outside;   // Of the blocks.
  std::span<const NamePair> of_block;  // What stands behind a block's number.

  // Blocks keep their number as it is spelt. Nothing: the map has no entry.
  std::optional<std::string> CanonicalName(std::string_view stored_name) const;
  std::optional<std::string> StoredName(std::string_view canonical_name) const;
};

}  // namespace pmkvq::internal
