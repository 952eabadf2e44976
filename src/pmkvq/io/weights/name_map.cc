#include "pmkvq/io/weights/name_map.h"

namespace pmkvq::internal {
namespace {

constexpr std::string_view kBlocks = "blocks.";

using Side = std::string_view NamePair::*;

// What stands for '*' where `name` has the form of `pattern`: a number, or '*' again; empty where
// the pattern has none.
std::optional<std::string_view> Match(std::string_view pattern, std::string_view name) {
  const size_t star = pattern.find('*');
  if (star == std::string_view::npos) {
    if (name != pattern) return std::nullopt;
    return std::string_view();
  }
  const std::string_view behind = pattern.substr(star + 1);
  if (name.size() < pattern.size() || !name.starts_with(pattern.substr(0, star)) ||
      !name.ends_with(behind)) {
    return std::nullopt;
  }
  const std::string_view number = name.substr(star, name.size() - star - behind.size());
  const bool is_number = number.find_first_not_of("0123456789") == std::string_view::npos;
  if (!is_number && number != "*") return std::nullopt;
  return number;
}

std::optional<std::string> Translate(std::span<const NamePair> names, Side from, Side to,
                                     std::string_view name) {
  for (const NamePair& each : names) {
    const std::optional<std::string_view> number = Match(each.*from, name);
    if (!number.has_value()) continue;
    std::string translated(each.*to);
    const size_t star = translated.find('*');
    if (star != std::string::npos && !number->empty()) translated.replace(star, 1, *number);
    return translated;
  }
  return std::nullopt;
}

std::optional<std::string> Translate(const NameMap& map, Side from, std::string_view from_blocks,
                                     Side to, std::string_view to_blocks, std::string_view name) {
  if (!name.starts_with(from_blocks)) {
    return Translate(map.outside, from, to, name);
  }
  name.remove_prefix(from_blocks.size());
  const size_t digits = name.find_first_not_of("0123456789");
  if (digits == std::string_view::npos || digits == 0 || name[digits] != '.') return std::nullopt;
  const std::optional<std::string> rest =
      Translate(map.of_block, from, to, name.substr(digits + 1));
  if (!rest.has_value()) return std::nullopt;
  std::string translated(to_blocks);
  translated.append(name.substr(0, digits + 1)).append(*rest);
  return translated;
}

}  // namespace

std::optional<std::string> NameMap::CanonicalName(std::string_view stored_name) const {
  return Translate(*this, &NamePair::stored, stored_blocks, &NamePair::canonical, kBlocks,
                   stored_name);
}

std::optional<std::string> NameMap::StoredName(std::string_view canonical_name) const {
  return Translate(*this, &NamePair::canonical, kBlocks, &NamePair::stored, stored_blocks,
                   canonical_name);
}

}  // namespace pmkvq::internal
