#include "pmkvq/io/weights/name_map.h"

namespace pmkvq::internal {
namespace {

constexpr std::string_view kBlocks = "blocks.";

using Side = std::string_view NamePair::*;

std::optional<std::string_view> Translate(std::span<const NamePair> names, Side from, Side to,
                                          std::string_view name) {
  for (const NamePair& each : names) {
    if (each.*from == name) return each.*to;
  }
  return std::nullopt;
}

std::optional<std::string> Translate(const NameMap& map, Side from, std::string_view from_blocks,
                                     Side to, std::string_view to_blocks, std::string_view name) {
  if (!name.starts_with(from_blocks)) {
    const std::optional<std::string_view> outside = Translate(map.outside, from, to, name);
    if (!outside.has_value()) return std::nullopt;
    return std::string(*outside);
  }
  name.remove_prefix(from_blocks.size());
  const size_t digits = name.find_first_not_of("0123456789");
  if (digits == std::string_view::npos || digits == 0 || name[digits] != '.') return std::nullopt;
  const std::optional<std::string_view> rest =
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
