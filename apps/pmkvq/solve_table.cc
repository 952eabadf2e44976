#include "solve_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "pmkvq/base/byte_size.h"

namespace pmkvq::cli {
namespace {

std::string FormatShares(const PagesPerWidth& pages) {
  const int64_t total = std::accumulate(pages.begin(), pages.end(), int64_t{0});
  std::string text;
  for (size_t i = 0; i < kWidths.size(); ++i) {
    // Simulated methods have no pages.
    text += total > 0 ? fmt::format("{:>5.0f}%", 100.0 * static_cast<double>(pages[i]) /
                                                     static_cast<double>(total))
                      : fmt::format("{:>6}", "-");
  }
  return text;
}

}  // namespace

std::string FormatSolveTable(const std::vector<SolveRow>& rows) {
  // 78 columns in all; a SPEC that does not fit its column is printed on a separate line.
  constexpr size_t kMostOfName = 11;
  size_t width = 6;
  for (const SolveRow& row : rows) {
    if (row.method.size() <= kMostOfName) width = std::max(width, row.method.size());
  }
  std::string text = fmt::format("{:<{}}{:>24}  {:>22}  {:>9}  {:>6}\n", "", width,
                                 "final pages at", "KV of one sequence", "", "tok/s");
  text += fmt::format("{:<{}}{:>6}{:>6}{:>6}{:>6}  {:>10}  {:>10}  {:>9}  {:>6}\n", "method", width,
                      "16", "8", "4", "2 bit", "peak", "budget", "solved", "of all");
  for (const SolveRow& row : rows) {
    const ResponseSummary& s = row.summary;
    const std::string rate =
        row.tokens_per_second > 0 ? fmt::format("{:.0f}", row.tokens_per_second) : "-";
    const bool is_long = row.method.size() > kMostOfName;
    if (is_long) text += row.method + "\n";
    text += fmt::format("{:<{}}{}  {:>10}  {:>10}  {:>9}  {:>6}\n", is_long ? "" : row.method,
                        width, FormatShares(s.final_pages), FormatByteSize(s.peak_bytes),
                        FormatByteSize(s.budget_bytes),
                        fmt::format("{}/{}", s.num_correct, s.judged.num_responses), rate);
  }
  return text;
}

}  // namespace pmkvq::cli
