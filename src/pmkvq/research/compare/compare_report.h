// A comparison as text for a terminal, as Markdown, as a page and as JSON.
#pragma once

#include <string>
#include <string_view>

#include "pmkvq/research/compare/compare.h"
#include "pmkvq/research/report/html_page.h"

namespace pmkvq {

// Aligned columns, at most 80 wide (a SPEC that is longer than its column stands on a line of its
// own), with notes on what the numbers mean. `by_level` adds one table of shares per level.
std::string FormatComparisonText(const Comparison& comparison, bool by_level);

// One table per budget, one per budget and level, and the notes.
std::string FormatComparisonMarkdown(const Comparison& comparison);

// Accuracy against bytes as a chart with intervals, the tables beneath it, and the notes; begins
// with who solved most at each budget, or as many as the baseline.
HtmlPage ComparisonPage(const Comparison& comparison, const PageOrigin& origin);

// Everything: settings, counts, intervals, p-values, levels (docs/formats.md). One line.
std::string FormatComparisonJson(const Comparison& comparison);

// The figures of counts that were made elsewhere, so that nobody has to compute them a second time.
// Both are JSON on one line, with the members of a comparison:
//   {"solved","responses"} gives {"share","interval"},
//   {"both","only_other","only_method","neither"} gives {"difference","interval","p_value"}.
// Throws InvalidInput naming `source`: anything else, or counts that no outcomes have.
std::string FormatFiguresOf(std::string_view counts, const std::string& source);

}  // namespace pmkvq
