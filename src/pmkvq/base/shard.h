// A part of units of work that several processes share, as a job array has it: --shard I/N.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace pmkvq {

// Unit u of a list that all shards agree on belongs to shard u mod `count`: dealt one by one, so
// that a list that is sorted by expected work is shared out evenly.
struct Shard {
  int64_t index = 0;  // From 0; texts and file names count from 1.
  int64_t count = 1;

  bool is_whole() const { return count == 1; }
  bool Owns(int64_t unit) const { return unit % count == index; }
  friend bool operator==(const Shard&, const Shard&) = default;
};

inline constexpr int64_t kMostShards = 65536;

// "2/4", "2of4" for {1, 4}.
std::string TextOf(const Shard& shard);
std::string FileNameOf(const Shard& shard);
// The shard of FileNameOf; nothing for any other text.
std::optional<Shard> ParseShardFileName(std::string_view text);
// The shard of TextOf. Throws InvalidInput naming `where` for everything else: what is wrong, and
// how a job array that counts from 0 is made to count from 1.
Shard ParseShard(std::string_view text, const std::string& where);

}  // namespace pmkvq
