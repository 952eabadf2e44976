#include "pmkvq/base/shard.h"

#include <fmt/format.h>

#include <charconv>

#include "pmkvq/base/error.h"

namespace pmkvq {
namespace {

// A decimal number without sign, blank or leading zero.
std::optional<int64_t> Count(std::string_view text) {
  int64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end || text.empty() || text.front() == '-') {
    return std::nullopt;
  }
  if (text.size() > 1 && text.front() == '0') return std::nullopt;
  return value;
}

// The two numbers around `separator`, from 0; nothing where they are no numbers.
std::optional<std::pair<int64_t, int64_t>> Numbers(std::string_view text,
                                                   std::string_view separator) {
  const size_t at = text.find(separator);
  if (at == std::string_view::npos) return std::nullopt;
  const auto index = Count(text.substr(0, at));
  const auto count = Count(text.substr(at + separator.size()));
  if (!index || !count) return std::nullopt;
  return std::pair{*index, *count};
}

bool IsShard(int64_t index, int64_t count) {
  return index >= 1 && index <= count && count <= kMostShards;
}

}  // namespace

std::string TextOf(const Shard& shard) {
  return fmt::format("{}/{}", shard.index + 1, shard.count);
}

std::string FileNameOf(const Shard& shard) {
  return fmt::format("{}of{}", shard.index + 1, shard.count);
}

std::optional<Shard> ParseShardFileName(std::string_view text) {
  const auto numbers = Numbers(text, "of");
  if (!numbers || !IsShard(numbers->first, numbers->second)) return std::nullopt;
  return Shard{numbers->first - 1, numbers->second};
}

Shard ParseShard(std::string_view text, const std::string& where) {
  const auto numbers = Numbers(text, "/");
  if (!numbers) {
    throw InvalidInput(where, fmt::format("found '{}', expected I/N, the I-th of N parts: 1/4 "
                                          "(in a Slurm script: "
                                          "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT)",
                                          text));
  }
  const auto [index, count] = *numbers;
  if (count < 1 || count > kMostShards) {
    throw InvalidInput(
        where, fmt::format("found {} parts in '{}', expected 1 to {}", count, text, kMostShards));
  }
  if (index == 0) {
    throw InvalidInput(
        where, fmt::format("found '{}', but parts count from 1; expected 1/{} to {}/{} (sbatch "
                           "--array=1-{})",
                           text, count, count, count, count));
  }
  if (index > count) {
    throw InvalidInput(where, fmt::format("found part {} of {}, expected 1/{} to {}/{} (sbatch "
                                          "--array=1-{})",
                                          index, count, count, count, count, count));
  }
  return {index - 1, count};
}

}  // namespace pmkvq
