#include "pmkvq/base/nearest_name.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <vector>

#include "pmkvq/base/strings.h"

namespace pmkvq {
namespace {

// Longer words are no misspelt names, and the cost grows with the square of the length.
constexpr size_t kLongestName = 64;

std::string Plain(std::string_view name) {
  std::string plain;
  for (const char c : name) {
    if (c != '-' && c != '_') {
      plain += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    }
  }
  return plain;
}

// Characters to insert, delete, replace or exchange with their neighbour.
size_t Distance(const std::string& a, const std::string& b) {
  std::vector<std::vector<size_t>> rows(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) rows[i][0] = i;
  for (size_t j = 0; j <= b.size(); ++j) rows[0][j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = rows[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      rows[i][j] = std::min({rows[i - 1][j] + 1, rows[i][j - 1] + 1, replaced});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        rows[i][j] = std::min(rows[i][j], rows[i - 2][j - 2] + 1);
      }
    }
  }
  return rows[a.size()][b.size()];
}

// "attn" of "attention": the same first letters, the others in the same order.
bool IsShortFor(const std::string& found, const std::string& name) {
  constexpr size_t kSameStart = 2;
  if (found.size() < 3 || found.size() >= name.size()) return false;
  if (found.compare(0, kSameStart, name, 0, kSameStart) != 0) return false;
  size_t next = kSameStart;
  for (size_t i = kSameStart; i < name.size() && next < found.size(); ++i) {
    if (name[i] == found[next]) ++next;
  }
  return next == found.size();
}

// The likeliest names, in the order of `names`; see NearestName.
std::vector<std::string> NearestNames(std::string_view found, std::span<const std::string> names) {
  const std::string plain = Plain(found);
  if (plain.empty() || plain.size() > kLongestName) return {};
  std::vector<std::string> nearest;
  size_t least = kLongestName;
  for (const std::string& name : names) {
    const std::string candidate = Plain(name);
    if (candidate.size() > kLongestName) continue;
    size_t distance = Distance(plain, candidate);
    const size_t allowed = std::max<size_t>(1, std::max(plain.size(), candidate.size()) / 3);
    if (distance > allowed) {
      if (!IsShortFor(plain, candidate)) continue;
      distance = allowed + 1;  // Behind every misspelling of a name of this length.
    }
    if (distance < least) nearest.clear();
    if (distance <= least) nearest.push_back(name);
    least = std::min(least, distance);
  }
  return nearest;
}

}  // namespace

std::string NearestName(std::string_view found, std::span<const std::string> names) {
  const std::vector<std::string> nearest = NearestNames(found, names);
  return nearest.empty() ? "" : nearest.front();
}

std::string DidYouMean(std::string_view found, std::span<const std::string> names) {
  const std::vector<std::string> nearest = NearestNames(found, names);
  return nearest.empty() ? "" : fmt::format(": did you mean {}?", ListOf(nearest, " or "));
}

}  // namespace pmkvq
