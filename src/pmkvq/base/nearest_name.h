// The name that somebody most likely meant, for messages about a name that does not exist.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace pmkvq {

// The one of `names` that `found` is a likely misspelling of, or "". Case, '-' and '_' do not
// count; a missing, extra or wrong character and two exchanged ones count one each, and about one
// in three characters may differ. A shortened word is also found: "attn" for "attention". Cost
// O(length^2) per name; names of more than 64 characters are never found.
std::string NearestName(std::string_view found, std::span<const std::string> names);

// ": did you mean NAME?" or "" when there is no such name. Names that are equally near are all
// said: ": did you mean A, B or C?".
std::string DidYouMean(std::string_view found, std::span<const std::string> names);

}  // namespace pmkvq
