// A comparison as text for a terminal, as Markdown, as a page and as JSON.
#pragma once

#include <string>
#include <string_view>

#include "pmkvq/research/compare/compare.h"
#include "pmkvq/research/report/html_page.h"

namespace pmkvq {

// Aligned columns, at most 80 wide (a SPEC that is longer than its column takes a whole line), with
// notes that explain the columns. `by_level` adds one table of shares per level.
std::string FormatComparisonText(const Comparison& comparison, bool by_level);

// One table per budget, one per budget and level, and the notes.
std::string FormatComparisonMarkdown(const Comparison& comparison);

// A chart of accuracy against bytes with intervals, then the tables and notes. The first sentence
// names the method that solved most at each budget, or that as many as the baseline were solved.
HtmlPage ComparisonPage(const Comparison& comparison, const PageOrigin& origin);

// Everything: settings, counts, intervals, p-values, levels (docs/formats.md). One line.
std::string FormatComparisonJson(const Comparison& comparison);

// Intervals and p-values for counts of other programs, which then need no statistics of their own.
// Both are JSON on one line, with the members of a comparison:
//   {"solved","responses"} gives {"share","interval"},
//   {"both","only_other","only_method","neither"} gives {"difference","interval","p_value"}.
// Throws InvalidInput naming `source`: anything else, or counts that no outcomes have.
std::string FormatFiguresOf(std::string_view counts, const std::string& source);

}  // namespace pmkvq
