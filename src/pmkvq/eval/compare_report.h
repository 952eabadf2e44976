// A comparison as text for a terminal, as Markdown and as JSON.
#pragma once

#include <string>

#include "pmkvq/eval/compare.h"

namespace pmkvq {

// Aligned columns, at most 120 wide (a SPEC that is longer than its column stands on a line of its
// own), with notes on what the numbers mean. `by_level` adds one table of shares per level.
std::string FormatComparisonText(const Comparison& comparison, bool by_level);

// One table per budget, one per budget and level, and the notes.
std::string FormatComparisonMarkdown(const Comparison& comparison);

// Everything: settings, counts, intervals, p-values, levels (docs/formats.md). One line.
std::string FormatComparisonJson(const Comparison& comparison);

}  // namespace pmkvq
