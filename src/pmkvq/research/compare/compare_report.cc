#include "pmkvq/research/compare/compare_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <utility>

#include "pmkvq/base/byte_size.h"
#include "pmkvq/base/strings.h"
#include "pmkvq/base/wrap_text.h"

namespace pmkvq {
namespace {

using Cells = std::vector<std::string>;

// --- Cells ------------------------------------------------------------------------------------

// "97.5 [91.3, 99.3]"
std::string FormatShare(const Score& score) {
  if (score.num_responses == 0) return "-";
  return fmt::format("{:.1f} [{:.1f}, {:.1f}]", 100 * score.share(), 100 * score.interval.low,
                     100 * score.interval.high);
}

// "-12.5 [-15.1, -9.9]"
std::string FormatDifference(const PairedResult& pair) {
  return fmt::format("{:+.1f} [{:+.1f}, {:+.1f}]", 100 * pair.difference, 100 * pair.interval.low,
                     100 * pair.interval.high);
}

std::string FormatPValue(double p) {
  if (p >= 1) return "1";
  return p >= 0.001 ? fmt::format("{:.3f}", p) : fmt::format("{:.0e}", p);
}

std::string FormatBits(double bits) { return bits > 0 ? fmt::format("{:.2f}", bits) : "-"; }

std::string FormatSpeed(const MethodResult& row) {
  if (row.tokens_per_second <= 0) return "-";
  return fmt::format("{}{:.0f}", row.is_simulated ? "~" : "", row.tokens_per_second);
}

// Why a method has no numbers; "" when it has them.
std::string WhyNoNumbers(const MethodResult& row) {
  switch (row.status) {
    case MethodStatus::kDone:
      return "";
    case MethodStatus::kDoesNotFit:
      return fmt::format("does not fit: needs {} at {} tokens", FormatByteSize(row.needed_bytes),
                         row.needed_tokens);
    case MethodStatus::kInterrupted:
      return fmt::format("interrupted at {} of {} responses", row.total.num_responses,
                         row.num_expected);
  }
  return "";
}

Cells PairCells(const std::optional<PairedResult>& pair) {
  if (!pair) return {"", "", "", ""};
  return {FormatDifference(*pair), fmt::format("{}", pair->only_other),
          fmt::format("{}", pair->only_method), FormatPValue(pair->p_value)};
}

// Headers break at '\n' where they are columns of text.
Cells PairHeader(const std::string& other) {
  return {"difference to\n" + other, "only\n" + other, "only\nthis", "p"};
}

Cells AccuracyCells(const Score& score) {
  return {fmt::format("{}/{}", score.num_correct, score.num_responses), FormatShare(score)};
}

bool AnyRow(const Comparison& comparison, bool (*is)(const MethodResult&)) {
  for (const ComparisonTable& table : comparison.tables) {
    if (std::any_of(table.methods.begin(), table.methods.end(), is)) return true;
  }
  return false;
}

bool Evicts(const MethodResult& row) { return row.kept_share < 1; }

// The baseline has no budget; its row says so.
Cells MemoryCells(const Comparison& comparison, const ComparisonTable& table,
                  const MethodResult& row) {
  const bool has_budget = table.budget_bytes > 0 && row.method != comparison.baseline;
  const double by_budget = has_budget ? EffectiveBitsOf(comparison, table.budget_bytes) : 0;
  Cells cells = {
      FormatBits(by_budget),
      FormatBits(EffectiveBitsOf(comparison, row.peak_bytes)),
      FormatByteSize(row.peak_bytes),
      row.total.num_responses > 0 ? fmt::format("{:.0f}", row.mean_output_tokens()) : "-",
      fmt::format("{}", row.num_cut_by_length),
      fmt::format("{}", row.num_cut_by_budget),
      FormatSpeed(row)};
  if (AnyRow(comparison, Evicts)) cells.push_back(fmt::format("{:.1f}", 100 * row.kept_share));
  return cells;
}

Cells MemoryHeader(const Comparison& comparison) {
  Cells header = {"bits by\nbudget", "bits by\npeak",  "peak\nbytes",  "mean\ntokens",
                  "cut by\nlength",  "cut by\nbudget", "tok/s\n(seq.)"};
  if (AnyRow(comparison, Evicts)) header.emplace_back("kept\n%");
  return header;
}

Cells Join(Cells first, const Cells& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

// --- Notes ------------------------------------------------------------------------------------

std::string TableTitle(const Comparison& comparison, const ComparisonTable& table) {
  if (table.budget_bytes == 0) return "no --kv-budget: each method with what it takes";
  std::string title = fmt::format("{} for one sequence", FormatByteSize(table.budget_bytes));
  const double bits = EffectiveBitsOf(comparison, table.budget_bytes);
  if (bits > 0) {
    title += fmt::format(": {:.2f} effective bits at {} tokens", bits, comparison.max_len);
  }
  return title;
}

std::string Headline(const Comparison& comparison) {
  return fmt::format("{}: {} problem{}, {} response{} each", comparison.benchmark,
                     comparison.num_problems, comparison.num_problems == 1 ? "" : "s",
                     comparison.num_responses, comparison.num_responses == 1 ? "" : "s");
}

// "--temperature 0, --seed 42": the settings that change responses; the JSON has all of them.
// `quote` goes around each.
std::string SettingsLine(const Comparison& comparison, const char* quote) {
  static const std::set<std::string> kShown = {
      "--max-len", "--temperature", "--top-k", "--top-p", "--min-p", "--seed", "--max-tokens"};
  std::string text;
  for (const auto& [option, value] : comparison.settings) {
    if (!kShown.contains(option)) continue;
    text += fmt::format("{}{}{} {}{}", text.empty() ? "" : ", ", quote, option, value, quote);
  }
  return text;
}

// What the numbers mean, one sentence or two each.
std::vector<std::string> Notes(const Comparison& comparison) {
  std::vector<std::string> notes = {
      "Shares in %, differences in points, both with 95 % intervals: Wilson; for pairs Newcombe's "
      "method 10.",
      "p: exact two-sided McNemar test of the problems that only one of the two solved."};
  if (comparison.num_responses > 1) {
    notes.push_back(fmt::format(
        "Shares are pass@1 over all {} responses to each problem. A pair is one problem and "
        "one response index;",
        comparison.num_responses));
    notes.emplace_back(
        "the responses to one problem count together: intervals by their design effect, the test "
        "problem by problem.");
  }
  notes.emplace_back(
      comparison.max_len > 0 && comparison.values_per_token > 0
          ? fmt::format(
                "bits: bytes per value of {0} tokens, every byte counted; peak: the most that "
                "any sequence really took, so bits by peak lie below a method's width where "
                "all sequences are shorter than {0} tokens. Methods have the same budget; "
                "some leave a part of it unused.",
                comparison.max_len)
          : std::string("peak: the most that any sequence really took, every byte counted."));
  notes.emplace_back("tok/s (seq.): of one sequence, while it is decoded in its batch.");
  if (AnyRow(comparison, [](const MethodResult& row) { return row.num_prompts_too_long > 0; })) {
    notes.emplace_back("Of those cut, without room for a token behind the prompt (unsolved, too):");
  }
  for (const ComparisonTable& table : comparison.tables) {
    for (const MethodResult& row : table.methods) {
      const bool is_baseline = row.method == comparison.baseline;
      if (row.num_prompts_too_long == 0) continue;
      if (is_baseline && &table != &comparison.tables.front()) continue;
      const bool has_budget = table.budget_bytes > 0 && !is_baseline;
      notes.push_back(fmt::format("{}{}: {}", row.method,
                                  has_budget ? " at " + FormatByteSize(table.budget_bytes) : "",
                                  row.num_prompts_too_long));
    }
  }
  if (AnyRow(comparison, [](const MethodResult& row) { return row.is_simulated; })) {
    notes.emplace_back("~: the speed of a simulation, which says nothing about the method's.");
  }
  if (AnyRow(comparison, [](const MethodResult& row) {
        return row.status == MethodStatus::kDone && row.needed_bytes > 0;
      })) {
    notes.emplace_back("*: holds fewer tokens than the longest sequence has; run all the same.");
  }
  return notes;
}

std::string NameCell(const MethodResult& row) {
  const bool partial = row.status == MethodStatus::kDone && row.needed_bytes > 0;
  return partial ? row.method + " *" : row.method;
}

// --- Text -------------------------------------------------------------------------------------

constexpr size_t kTextColumns = 80;

struct TextRow {
  std::string name;
  Cells cells;        // As many as the header has, or
  std::string words;  // this in their place.
};

// The upper and the lower line of a header; where it is one line it is the lower one.
std::pair<std::string, std::string> HeaderLines(const std::string& header) {
  const size_t at = header.find('\n');
  if (at == std::string::npos) return {"", header};
  return {header.substr(0, at), header.substr(at + 1)};
}

// Columns two blanks apart, the first left-aligned and as wide as the rest leaves of kTextColumns.
std::string AlignText(const Cells& header, const std::vector<TextRow>& rows) {
  std::vector<size_t> widths;
  Cells upper, lower;
  size_t used = 0;
  for (size_t i = 0; i < header.size(); ++i) {
    const auto [first, second] = HeaderLines(header[i]);
    upper.push_back(first);
    lower.push_back(second);
    if (i == 0) continue;
    size_t width = std::max(first.size(), second.size());
    for (const TextRow& row : rows) {
      if (!row.cells.empty()) width = std::max(width, row.cells[i - 1].size());
    }
    widths.push_back(width);
    used += width + 2;
  }
  size_t name_width = header[0].size();
  const size_t most = std::max(used < kTextColumns ? kTextColumns - used : 0, name_width);
  for (const TextRow& row : rows) {
    if (row.name.size() <= most) name_width = std::max(name_width, row.name.size());
  }
  const auto line = [&](const std::string& name, const Cells& cells, size_t first) {
    std::string text = fmt::format("{:<{}}", name, name_width);
    for (size_t i = 0; i < widths.size(); ++i) {
      text += fmt::format("  {:>{}}", cells[first + i], widths[i]);
    }
    return text.erase(text.find_last_not_of(' ') + 1) + "\n";
  };
  std::string text = line(upper[0], upper, 1);
  if (text == "\n") text.clear();
  text += line(lower[0], lower, 1);
  for (const TextRow& row : rows) {
    std::string name = row.name;
    if (name.size() > name_width) {
      text += name + "\n";
      name.clear();
    }
    text += row.cells.empty() ? fmt::format("{:<{}}  {}\n", name, name_width, row.words)
                              : line(name, row.cells, 0);
  }
  return text;
}

// One table of the rows that `cells` makes; rows without numbers say why.
template <class MakeCells>
std::string TextTable(const ComparisonTable& table, const Cells& header, MakeCells make_cells) {
  std::vector<TextRow> rows;
  for (const MethodResult& row : table.methods) {
    const std::string why = WhyNoNumbers(row);
    rows.push_back({NameCell(row), why.empty() ? make_cells(row) : Cells(), why});
  }
  return AlignText(header, rows);
}

std::set<int64_t> LevelsOf(const ComparisonTable& table) {
  std::set<int64_t> levels;
  for (const MethodResult& row : table.methods) {
    for (const auto& [level, unused] : row.levels) levels.insert(level);
  }
  return levels;
}

// The levels in rows under one another: methods times levels do not fit beside each other.
std::string TextLevels(const Comparison& comparison, const ComparisonTable& table) {
  std::string text;
  for (const int64_t level : LevelsOf(table)) {
    std::vector<TextRow> rows;
    for (const MethodResult& row : table.methods) {
      const auto found = row.levels.find(level);
      if (found == row.levels.end()) continue;
      rows.push_back({NameCell(row),
                      Join(AccuracyCells(found->second), PairCells(found->second.baseline)), ""});
    }
    const Cells header = {fmt::format("level {}", level), "solved", "share"};
    text += "\n" + AlignText(Join(header, PairHeader(comparison.baseline)), rows);
  }
  return text;
}

// --- Markdown ---------------------------------------------------------------------------------

std::string Escape(const std::string& cell) {
  std::string text;
  for (const char c : cell) {
    if (c == '|') text += '\\';
    text += c;
  }
  return text;
}

std::string MarkdownLine(const Cells& cells) {
  std::string text = "|";
  for (const std::string& cell : cells) text += " " + Escape(cell) + " |";
  return text + "\n";
}

std::string MarkdownHeader(const Cells& header) {
  std::string text = MarkdownLine(header) + "|---|";
  for (size_t i = 1; i < header.size(); ++i) text += "---:|";
  return text + "\n";
}

// Headers for cells that break their own lines.
Cells Unbroken(Cells header) {
  for (std::string& name : header) std::replace(name.begin(), name.end(), '\n', ' ');
  return header;
}

// Of one wide table.
Cells WideHeader(const Comparison& comparison) {
  Cells header = Join({"method", "solved", "share"}, PairHeader(comparison.baseline));
  if (!comparison.against.empty()) header = Join(header, PairHeader(comparison.against));
  return Unbroken(Join(header, MemoryHeader(comparison)));
}

// Without the name.
Cells WideCells(const Comparison& comparison, const ComparisonTable& table,
                const MethodResult& row) {
  Cells cells = Join(AccuracyCells(row.total), PairCells(row.total.baseline));
  if (!comparison.against.empty()) cells = Join(cells, PairCells(row.total.against));
  return Join(cells, MemoryCells(comparison, table, row));
}

std::string MarkdownTable(const Comparison& comparison, const ComparisonTable& table) {
  const Cells header = WideHeader(comparison);
  std::string text = MarkdownHeader(header);
  for (const MethodResult& row : table.methods) {
    const std::string why = WhyNoNumbers(row);
    Cells cells = {"`" + row.method + "`" + (NameCell(row) != row.method ? " *" : "")};
    if (why.empty()) {
      cells = Join(cells, WideCells(comparison, table, row));
    } else {
      cells.push_back(why);
      cells.resize(header.size());
    }
    text += MarkdownLine(cells);
  }
  return text;
}

std::string MarkdownLevels(const ComparisonTable& table) {
  const std::set<int64_t> levels = LevelsOf(table);
  Cells header = {"method"};
  for (const int64_t level : levels) header.push_back(fmt::format("level {}", level));
  std::string text = MarkdownHeader(header);
  for (const MethodResult& row : table.methods) {
    if (row.status != MethodStatus::kDone) continue;
    Cells cells = {"`" + row.method + "`"};
    for (const int64_t level : levels) {
      const auto found = row.levels.find(level);
      if (found == row.levels.end()) {
        cells.emplace_back("-");
        continue;
      }
      const Score& score = found->second;
      std::string cell =
          fmt::format("{}/{}, {}", score.num_correct, score.num_responses, FormatShare(score));
      if (score.baseline) cell += ", p " + FormatPValue(score.baseline->p_value);
      cells.push_back(cell);
    }
    text += MarkdownLine(cells);
  }
  return text;
}

// --- Page -------------------------------------------------------------------------------------

// "28 of 32 (87.5 %, 95 % interval 71.9 to 95.0)"
std::string SolvedInWords(const Score& score) {
  return fmt::format("{} of {} ({:.1f} %, 95 % interval {:.1f} to {:.1f})", score.num_correct,
                     score.num_responses, 100 * score.share(), 100 * score.interval.low,
                     100 * score.interval.high);
}

// Who solved most at this budget, and how far that is from the baseline.
std::string VerdictOf(const Comparison& comparison, const ComparisonTable& table) {
  std::vector<const MethodResult*> best;
  const MethodResult* baseline = nullptr;
  for (const MethodResult& row : table.methods) {
    if (row.status != MethodStatus::kDone) continue;
    if (row.method == comparison.baseline) {
      baseline = &row;
      continue;
    }
    if (!best.empty() && row.total.num_correct < best[0]->total.num_correct) continue;
    if (!best.empty() && row.total.num_correct > best[0]->total.num_correct) best.clear();
    best.push_back(&row);
  }
  const std::string place = table.budget_bytes > 0
                                ? "At " + FormatByteSize(table.budget_bytes) + " for one sequence"
                                : "Without a budget";
  if (best.empty()) return place + " no method has a result.";
  std::vector<std::string> names;
  for (const MethodResult* row : best) names.push_back(row->method);
  const Score& score = best[0]->total;
  const bool ties_baseline =
      baseline != nullptr && score.num_correct == baseline->total.num_correct;
  std::string text = fmt::format("{}, {} solved {}: {}", place, ListOf(names),
                                 ties_baseline ? "as many as " + comparison.baseline : "most",
                                 SolvedInWords(score));
  // Methods that solved equally many differ equally from the baseline, but their intervals differ.
  if (score.baseline && best.size() == 1) {
    text +=
        fmt::format("; {} points from {}", FormatDifference(*score.baseline), comparison.baseline);
  } else if (score.baseline && !ties_baseline) {
    text += fmt::format("; {:+.1f} points from {}", 100 * score.baseline->difference,
                        comparison.baseline);
  }
  for (const MethodResult& row : table.methods) {
    const bool is_best = std::find(best.begin(), best.end(), &row) != best.end();
    if (is_best || &row == baseline || row.status != MethodStatus::kDone) continue;
    text += fmt::format("; {} solved {} of {}", row.method, row.total.num_correct,
                        row.total.num_responses);
  }
  return text + ".";
}

// A point per method and budget, at the bytes that a sequence really took.
Chart AccuracyChart(const Comparison& comparison) {
  constexpr double kMib = 1 << 20;
  Chart chart;
  chart.title = "Right answers against the bytes that one sequence really took";
  chart.x_label = "peak bytes of a sequence (MiB)";
  chart.y_label = "right answers (%), with 95 % intervals";
  chart.log_x = true;
  for (const ComparisonTable& table : comparison.tables) {
    for (const MethodResult& row : table.methods) {
      if (row.status != MethodStatus::kDone) continue;
      auto series = std::find_if(chart.series.begin(), chart.series.end(),
                                 [&](const ChartSeries& one) { return one.name == row.method; });
      if (series != chart.series.end() && row.method == comparison.baseline) continue;
      if (series == chart.series.end()) {
        series = chart.series.insert(series, ChartSeries{row.method, {}, {}});
      }
      const double x = static_cast<double>(row.peak_bytes) / kMib;
      const auto at = std::upper_bound(series->x.begin(), series->x.end(), x) - series->x.begin();
      const auto insert = [&](std::vector<double>& list, double value) {
        list.insert(list.begin() + at, value);
      };
      insert(series->x, x);
      insert(series->y, 100 * row.total.share());
      insert(series->low, 100 * row.total.interval.low);
      insert(series->high, 100 * row.total.interval.high);
    }
  }
  return chart;
}

// One table of the rows that `cells` makes; rows without numbers say why.
template <class MakeCells>
Table PageTable(const ComparisonTable& table, const Cells& header, MakeCells make_cells) {
  Table result{"", Unbroken(header), {}};
  for (const MethodResult& row : table.methods) {
    const std::string why = WhyNoNumbers(row);
    std::vector<TableCell>& cells = result.rows.emplace_back();
    cells.emplace_back(why.empty() ? NameCell(row) : row.method + " (" + why + ")");
    if (why.empty()) {
      for (const std::string& cell : make_cells(row)) cells.emplace_back(cell);
    } else {
      cells.resize(result.header.size(), "");
    }
  }
  return result;
}

// Right answers and memory apart: side by side they would not fit a page.
void AddPageTables(const Comparison& comparison, const ComparisonTable& table, HtmlPage& page) {
  page.AddTable(PageTable(table,
                          Join({"method", "solved", "share"}, PairHeader(comparison.baseline)),
                          [](const MethodResult& row) {
                            return Join(AccuracyCells(row.total), PairCells(row.total.baseline));
                          }));
  if (!comparison.against.empty()) {
    page.AddTable(PageTable(table, Join({"method"}, PairHeader(comparison.against)),
                            [](const MethodResult& row) { return PairCells(row.total.against); }));
  }
  page.AddTable(
      PageTable(table, Join({"method"}, MemoryHeader(comparison)),
                [&](const MethodResult& row) { return MemoryCells(comparison, table, row); }));
}

Table PageLevels(const ComparisonTable& table) {
  Table result{"Share of right answers by level (%, 95 % interval)", {"method"}, {}};
  const std::set<int64_t> levels = LevelsOf(table);
  for (const int64_t level : levels) result.header.push_back(fmt::format("level {}", level));
  for (const MethodResult& row : table.methods) {
    if (row.status != MethodStatus::kDone) continue;
    std::vector<TableCell>& cells = result.rows.emplace_back();
    cells.emplace_back(row.method);
    for (const int64_t level : levels) {
      const auto found = row.levels.find(level);
      cells.emplace_back(found == row.levels.end() ? "-" : FormatShare(found->second));
    }
  }
  return result;
}

}  // namespace

HtmlPage ComparisonPage(const Comparison& comparison, const PageOrigin& origin) {
  HtmlPage page("Cache methods at equal bytes", origin);
  std::string verdict;
  for (const ComparisonTable& table : comparison.tables) {
    verdict += (verdict.empty() ? "" : " ") + VerdictOf(comparison, table);
  }
  page.SetVerdict(verdict);
  page.AddFacts({{"benchmark", Headline(comparison)}, {"settings", SettingsLine(comparison, "")}});
  page.AddChart(AccuracyChart(comparison));
  for (const ComparisonTable& table : comparison.tables) {
    page.AddHeading(TableTitle(comparison, table));
    AddPageTables(comparison, table, page);
    if (LevelsOf(table).size() > 1) page.AddTable(PageLevels(table));
  }
  page.AddHeading("What the numbers mean");
  for (const std::string& note : Notes(comparison)) page.AddParagraph(note);
  page.AddParagraph("Marks that would cover each other in the chart stand side by side.");
  return page;
}

std::string FormatComparisonText(const Comparison& comparison, bool by_level) {
  const auto paragraph = [](const std::string& words) {
    return words.empty() ? "" : WrapWords(words, kTextColumns) + "\n";
  };
  std::string text = paragraph(Headline(comparison)) + paragraph(SettingsLine(comparison, ""));
  for (const ComparisonTable& table : comparison.tables) {
    text += "\n" + paragraph(TableTitle(comparison, table)) + "\n";
    text += TextTable(table, Join({"method", "solved", "share"}, PairHeader(comparison.baseline)),
                      [](const MethodResult& row) {
                        return Join(AccuracyCells(row.total), PairCells(row.total.baseline));
                      });
    if (!comparison.against.empty()) {
      // A long SPEC would make every column of it as wide.
      constexpr size_t kMostOfName = 16;
      const bool is_short = comparison.against.size() <= kMostOfName;
      text += is_short ? "\n" : "\nother: " + comparison.against + "\n";
      text +=
          TextTable(table, Join({"method"}, PairHeader(is_short ? comparison.against : "other")),
                    [](const MethodResult& row) { return PairCells(row.total.against); });
    }
    text += "\n" +
            TextTable(table, Join({"method"}, MemoryHeader(comparison)),
                      [&](const MethodResult& row) { return MemoryCells(comparison, table, row); });
    if (by_level) text += TextLevels(comparison, table);
  }
  text += "\n";
  for (const std::string& note : Notes(comparison)) text += paragraph(note);
  return text;
}

std::string FormatComparisonMarkdown(const Comparison& comparison) {
  std::string text = Headline(comparison) + ".";
  const std::string settings = SettingsLine(comparison, "`");
  if (!settings.empty()) text += " Settings: " + settings + ".";
  text += "\n";
  for (const ComparisonTable& table : comparison.tables) {
    text += "\n## " + TableTitle(comparison, table) + "\n\n";
    text += MarkdownTable(comparison, table);
    text += "\nBy level (solved, share with its interval, p against " + comparison.baseline +
            "):\n\n" + MarkdownLevels(table);
  }
  text += "\n";
  for (const std::string& note : Notes(comparison)) text += "* " + note + "\n";
  return text;
}

}  // namespace pmkvq
