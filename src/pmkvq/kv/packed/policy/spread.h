// Distributes the work that a new page needs over tokens: as late as a limit on the work of one
// token allows.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace pmkvq {

// Spreads pieces of work over the tokens that come before an event and the event's own token.
//
// piece_bytes: in the order in which they are done. bytes_at_event: work that cannot be done
// earlier. Result: for each piece how many tokens before the event's it is done (0: with it); it
// never rises. Pieces are laid out backwards, as many per token as keep it within limit_bytes, so
// that no piece could be done later. A piece larger than the limit is the only one of its token.
// Where tokens_before tokens do not suffice, the limit is raised until they do.
// A function of sizes alone. Cost O(pieces).
std::vector<int64_t> SpreadBackwards(std::span<const int64_t> piece_bytes, int64_t bytes_at_event,
                                     int64_t limit_bytes, int64_t tokens_before);

}  // namespace pmkvq
