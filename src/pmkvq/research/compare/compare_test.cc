#include "pmkvq/research/compare/compare.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "pmkvq/io/json.h"
#include "pmkvq/research/compare/compare_report.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;

// One response to each problem p0, p1, ...: '1' right, '0' wrong, 'L' cut by length, 'B' by budget.
// The first half of the problems is of level 1, the rest of level 2.
MethodRun RunOf(const std::string& method, const std::string& outcomes) {
  MethodRun run;
  run.method = method;
  run.num_expected = std::ssize(outcomes);
  for (size_t i = 0; i < outcomes.size(); ++i) {
    Outcome outcome;
    outcome.id = "p" + std::to_string(i);
    outcome.level = i < outcomes.size() / 2 ? 1 : 2;
    outcome.correct = outcomes[i] == '1';
    outcome.finish_reason = outcomes[i] == 'L'   ? "length"
                            : outcomes[i] == 'B' ? "kv_budget"
                                                 : "stop";
    outcome.output_tokens = 100 + static_cast<int64_t>(i);
    outcome.peak_bytes = 1000 + static_cast<int64_t>(i);
    outcome.decode_seconds = 2;
    run.outcomes.push_back(outcome);
  }
  return run;
}

TEST(CompareMethods, CountsByHand) {
  // fp16 solves 7 of 8, the method 4; both 4, only fp16 3, neither 1.
  const std::vector<MethodResult> results =
      CompareMethods({RunOf("fp16", "11111110"), RunOf("m", "1101L01B")}, 0, std::nullopt);
  ASSERT_EQ(results.size(), 2u);
  EXPECT_EQ(results[0].total.num_correct, 7);
  EXPECT_FALSE(results[0].total.baseline);
  const MethodResult& method = results[1];
  EXPECT_EQ(method.total.num_correct, 4);
  EXPECT_EQ(method.total.num_responses, 8);
  EXPECT_EQ(method.total.share(), 0.5);
  EXPECT_EQ(method.num_cut_by_length, 1);
  EXPECT_EQ(method.num_cut_by_budget, 1);
  EXPECT_EQ(method.output_tokens, 8 * 100 + 28);
  EXPECT_EQ(method.mean_output_tokens(), 103.5);
  EXPECT_EQ(method.peak_bytes, 1007);
  EXPECT_EQ(method.tokens_per_second, 828.0 / 16);
  ASSERT_TRUE(method.total.baseline);
  const PairedResult& pair = *method.total.baseline;
  EXPECT_EQ(pair.both, 4);
  EXPECT_EQ(pair.only_other, 3);
  EXPECT_EQ(pair.only_method, 0);
  EXPECT_EQ(pair.neither, 1);
  EXPECT_EQ(pair.difference, -0.375);
  EXPECT_EQ(pair.p_value, 0.25);  // 2 / 2^3
  EXPECT_LT(pair.interval.low, -0.375);
  EXPECT_GT(pair.interval.high, -0.375);
  EXPECT_LT(pair.interval.high, 0.375);  // Its sign is that of method minus baseline.
  // Level 1: 4 against 3; level 2: 3 against 1.
  EXPECT_EQ(method.levels.at(1).num_correct, 3);
  EXPECT_EQ(method.levels.at(1).baseline->only_other, 1);
  EXPECT_EQ(method.levels.at(2).num_correct, 1);
  EXPECT_EQ(method.levels.at(2).baseline->neither, 1);
}

TEST(CompareMethods, PairsByProblemAndResponseInWhateverOrder) {
  MethodRun fp16 = RunOf("fp16", "10");
  MethodRun method = RunOf("m", "01");
  for (MethodRun* run : {&fp16, &method}) run->outcomes[1].id = "p0";
  fp16.outcomes[1].response = method.outcomes[1].response = 1;
  std::swap(method.outcomes[0], method.outcomes[1]);
  const PairedResult pair = *CompareMethods({fp16, method}, 0, std::nullopt)[1].total.baseline;
  EXPECT_EQ(pair.only_other, 1);
  EXPECT_EQ(pair.only_method, 1);
  EXPECT_EQ(pair.both + pair.neither, 0);
  EXPECT_EQ(pair.p_value, 1);
}

TEST(CompareMethods, TiesSayNothing) {
  const Score score =
      CompareMethods({RunOf("fp16", "1100"), RunOf("m", "1100")}, 0, std::nullopt)[1].total;
  EXPECT_EQ(score.baseline->difference, 0);
  EXPECT_EQ(score.baseline->p_value, 1);
  EXPECT_NEAR(score.baseline->interval.low, -score.baseline->interval.high, 1e-15);
}

TEST(CompareMethods, NoResponses) {
  const std::vector<MethodResult> results =
      CompareMethods({RunOf("fp16", ""), RunOf("m", "")}, 0, std::nullopt);
  EXPECT_EQ(results[1].total.share(), 0);
  EXPECT_EQ(results[1].mean_output_tokens(), 0);
  EXPECT_EQ(results[1].total.interval.high, 1);
  EXPECT_EQ(results[1].total.baseline->p_value, 1);
}

TEST(CompareMethods, SecondPairing) {
  const std::vector<MethodResult> results =
      CompareMethods({RunOf("fp16", "111"), RunOf("a", "100"), RunOf("b", "011")}, 0, 1);
  EXPECT_EQ(results[0].total.against->only_method, 2);  // fp16 against a.
  EXPECT_FALSE(results[1].total.against);
  EXPECT_EQ(results[2].total.against->only_other, 1);
  EXPECT_EQ(results[2].total.against->only_method, 2);
}

TEST(CompareMethods, WhatWasNotRunHasNoScoreAndPairsNothing) {
  MethodRun misfit = RunOf("a", "");
  misfit.status = MethodStatus::kDoesNotFit;
  const std::vector<MethodResult> results =
      CompareMethods({RunOf("fp16", "11"), misfit, RunOf("b", "01")}, 0, 1);
  EXPECT_TRUE(results[1].levels.empty());
  EXPECT_FALSE(results[1].total.baseline);
  EXPECT_FALSE(results[2].total.against);
  EXPECT_TRUE(results[2].total.baseline);
}

TEST(CompareMethods, RefusesMissingResponses) {
  MethodRun method = RunOf("m", "11111");
  method.outcomes.erase(method.outcomes.begin(), method.outcomes.begin() + 4);
  const MethodRun fp16 = RunOf("fp16", "11111");
  ExpectError<InvalidInput>(
      [&] {
        CompareMethods({fp16, method}, 0, std::nullopt);
      },
      {"[m] 4 of the 5 responses that 'fp16' has are missing", "problem 'p0' response 0",
       "problem 'p2' response 0", ", ..."});
  ExpectError<InvalidInput>(
      [&] {
        CompareMethods({method, fp16}, 0, std::nullopt);
      },
      {"[m] 4 of the 5 responses that 'fp16' has are missing"});
  MethodRun twice = fp16;
  twice.outcomes.push_back(twice.outcomes[2]);
  ExpectError<InvalidInput>(
      [&] {
        CompareMethods({fp16, twice}, 0, std::nullopt);
      },
      {"response 0 to problem 'p2' is there twice"});
}

// --- Reports ----------------------------------------------------------------------------------

constexpr const char* kLongSpec =
    "pm-kvq:policy=oldest-first+plan=results/plans/longcot-10m-3.25-bits-split-k-and-v.json";

// 12 blocks, C = 128, 4,096 tokens: 2 * 128 * 4096 values a block, so 2 bits are 3 MiB.
Comparison ExampleComparison() {
  Comparison comparison;
  comparison.benchmark = "longcot";
  comparison.model = "abc";
  comparison.baseline = "fp16";
  comparison.num_problems = 8;
  comparison.num_responses = 1;
  comparison.max_len = 4096;
  comparison.values_per_token = 12 * 2 * 128;
  comparison.settings = {{"--data", "hash"}, {"--seed", "42"}};
  MethodRun fp16 = RunOf("fp16", "11111110");
  for (Outcome& outcome : fp16.outcomes) outcome.peak_bytes = 24 << 20;
  MethodRun method = RunOf(kLongSpec, "1101L01B");
  for (Outcome& outcome : method.outcomes) outcome.peak_bytes = 3 << 20;
  MethodRun simulated = RunOf("kivi:bits=2", "00000000");
  simulated.is_simulated = true;
  simulated.needed_bytes = 7 << 20;  // Run with --allow-partial.
  simulated.needed_tokens = 4096;
  MethodRun misfit = RunOf("static-8", "");
  misfit.status = MethodStatus::kDoesNotFit;
  misfit.needed_bytes = 13 << 20;
  misfit.needed_tokens = 4096;
  comparison.tables = {
      {6 << 20, CompareMethods({fp16, method, simulated, misfit}, 0, std::nullopt)}};
  return comparison;
}

TEST(ComparisonReport, PageShowsSharesWithIntervalsAtTheBytesTaken) {
  const Comparison comparison = ExampleComparison();
  const HtmlPage page = ComparisonPage(comparison, {"pmkvq compare", "m", "p.json", "1", "today"});
  const std::string html = page.Render();
  const MethodResult& row = comparison.tables[0].methods[1];
  for (const std::string& part :
       {std::string("<p class=\"verdict\">At 6 MiB for one sequence, "),
        "\"name\":\"" + row.method + "\"", fmt::format("\"y\":[{}", 100 * row.total.share()),
        std::string("\"low\":["), std::string("does not fit: needs 13 MiB at 4096 tokens"),
        std::string("<dt>plan</dt><dd>p.json"), std::string("Wilson")}) {
    EXPECT_NE(html.find(part), std::string::npos) << part;
  }
}

TEST(ComparisonReport, SaysHowManyPromptsWereTooLong) {
  Comparison comparison = ExampleComparison();
  EXPECT_EQ(FormatComparisonText(comparison, false).find("without room"), std::string::npos);
  comparison.tables[0].methods[1].num_prompts_too_long = 3;
  const std::string text = FormatComparisonText(comparison, false);
  EXPECT_NE(text.find("without room for a token behind the prompt"), std::string::npos) << text;
  EXPECT_NE(text.find(std::string(kLongSpec) + "\nat 6 MiB: 3\n"), std::string::npos) << text;
  EXPECT_NE(FormatComparisonJson(comparison).find("\"prompts_too_long\":3"), std::string::npos);
}

// "x solved most" of a page.
std::string VerdictOf(const Comparison& comparison) {
  const std::string html = ComparisonPage(comparison, {}).Render();
  const std::string mark = "<p class=\"verdict\">";
  const size_t begin = html.find(mark) + mark.size();
  return html.substr(begin, html.find("</p>", begin) - begin);
}

TEST(ComparisonReport, VerdictSaysWhereNothingWasGained) {
  Comparison comparison = ExampleComparison();
  EXPECT_NE(VerdictOf(comparison).find("solved most: 4 of 8 (50.0 %"), std::string::npos);
  EXPECT_NE(VerdictOf(comparison).find("; -37.5 ["), std::string::npos);
  const auto with = [&](const std::vector<MethodRun>& runs) {
    comparison.tables = {{6 << 20, CompareMethods(runs, 0, std::nullopt)}};
    return VerdictOf(comparison);
  };
  const MethodRun fp16 = RunOf("fp16", "1111");
  EXPECT_EQ(with({fp16, RunOf("a", "1111"), RunOf("b", "1110")})
                .find("At 6 MiB for one sequence, a solved as many as fp16: 4 of 4 (100.0 %"),
            0u);
  const std::string tie = with({fp16, RunOf("a", "1111"), RunOf("b", "1111"), RunOf("c", "1111")});
  EXPECT_NE(tie.find("a, b and c solved as many as fp16: 4 of 4"), std::string::npos) << tie;
  EXPECT_EQ(tie.find("points from"), std::string::npos) << tie;
  const std::string less = with({fp16, RunOf("a", "1110"), RunOf("b", "0111")});
  EXPECT_NE(less.find("a and b solved most: 3 of 4"), std::string::npos) << less;
  EXPECT_TRUE(less.ends_with("; -25.0 points from fp16.")) << less;
}

// Eighteen columns beside each other would be cut at the width of a page.
TEST(ComparisonReport, PageTablesAreNarrow) {
  Comparison comparison = ExampleComparison();
  comparison.against = "kivi:bits=2";
  const std::string html = ComparisonPage(comparison, {}).Render();
  int num_tables = 0;
  for (size_t at = html.find("<thead>"); at != std::string::npos; at = html.find("<thead>", at)) {
    const size_t end = html.find("</thead>", at);
    int columns = 0;
    for (; (at = html.find("<th>", at)) < end; ++at) ++columns;
    EXPECT_LE(columns, 8);
    ++num_tables;
    at = end;
  }
  EXPECT_EQ(num_tables, 4);  // The last is of the levels.
}

// A SPEC that does not fit its column is printed on a separate line, which may be longer.
void ExpectFits(const std::string& text, size_t columns) {
  size_t begin = 0;
  for (size_t end = text.find('\n'); end != std::string::npos; end = text.find('\n', begin)) {
    const std::string line = text.substr(begin, end - begin);
    EXPECT_TRUE(line.size() <= columns || line.find(kLongSpec) != std::string::npos) << line;
    EXPECT_FALSE(line.ends_with(' ')) << line;
    begin = end + 1;
  }
}

TEST(ComparisonReport, TextFitsIn80Columns) {
  Comparison comparison = ExampleComparison();
  comparison.num_responses = 16;
  comparison.against = kLongSpec;
  const std::string against_long = FormatComparisonText(comparison, true);
  ExpectFits(against_long, 80);
  EXPECT_NE(against_long.find("\nother: " + std::string(kLongSpec) + "\n"), std::string::npos);
  comparison.against = "kivi:bits=2";
  const std::string text = FormatComparisonText(comparison, true);
  ExpectFits(text, 80);
  for (const char* part : {"longcot: 8 problems, 16 responses each", "--seed 42", "difference to",
                           "6 MiB for one sequence: 4.00 effective bits at 4096 tokens", "87.5 [",
                           "50.0 [", "-37.5 [", "does not fit: needs 13 MiB at 4096 tokens",
                           "kivi:bits=2 *", "level 2", "0.250", "~52", "\n*: holds", "McNemar"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
  }
  EXPECT_EQ(text.find("hash"), std::string::npos);
  const std::string plain = FormatComparisonText(ExampleComparison(), false);
  EXPECT_EQ(plain.find("level 2"), std::string::npos);
  EXPECT_EQ(plain.find("independent"), std::string::npos);
}

TEST(ComparisonReport, SeveralResponsesAreSaidToCountTogether) {
  Comparison comparison = ExampleComparison();
  comparison.num_responses = 4;
  EXPECT_NE(FormatComparisonText(comparison, false).find("count together"), std::string::npos);
  EXPECT_NE(FormatComparisonMarkdown(comparison).find("count together"), std::string::npos);
}

// Ten equal responses to each of eight problems are no surer than one to each.
TEST(CompareMethods, ResponsesToOneProblemCountTogether) {
  std::vector<MethodRun> runs(2);
  runs[0].method = "fp16";
  runs[1].method = "kivi";
  for (int problem = 0; problem < 8; ++problem) {
    for (int64_t response = 0; response < 10; ++response) {
      Outcome outcome;
      outcome.id = "p" + std::to_string(problem);
      outcome.response = response;
      outcome.correct = problem < 7;
      runs[0].outcomes.push_back(outcome);
      outcome.correct = problem < 2;
      runs[1].outcomes.push_back(outcome);
    }
  }
  const MethodResult kivi = CompareMethods(runs, 0, std::nullopt)[1];
  EXPECT_EQ(kivi.total.num_correct, 20);
  EXPECT_NEAR(kivi.total.interval.high, WilsonInterval(2, 8).high, 1e-12);
  ASSERT_TRUE(kivi.total.baseline);
  EXPECT_EQ(kivi.total.baseline->only_other, 50);
  EXPECT_NEAR(kivi.total.baseline->interval.low, PairedDifferenceInterval(2, 0, 5, 1).low, 1e-12);
  EXPECT_NEAR(kivi.total.baseline->p_value, McNemarExact(0, 5), 1e-12);
}

TEST(ComparisonReport, MarkdownTablesHaveEqualColumns) {
  Comparison comparison = ExampleComparison();
  comparison.against = kLongSpec;
  const std::string text = FormatComparisonMarkdown(comparison);
  size_t columns = 0;
  size_t rows = 0;
  size_t begin = 0;
  for (size_t end = text.find('\n'); end != std::string::npos; end = text.find('\n', begin)) {
    const std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    if (line.empty() || line[0] != '|') {
      columns = 0;
      continue;
    }
    const size_t found = static_cast<size_t>(std::count(line.begin(), line.end(), '|'));
    if (columns == 0) columns = found;
    EXPECT_EQ(found, columns) << line;
    ++rows;
  }
  EXPECT_EQ(rows, 2u + 4u + 2u + 3u);  // Two headers of two lines; the misfit has no levels.
  EXPECT_NE(text.find("| `static-8` | does not fit"), std::string::npos) << text;
}

TEST(ComparisonReport, JsonHasEveryCount) {
  const JsonValue json = JsonValue::Parse(FormatComparisonJson(ExampleComparison()), "report");
  EXPECT_EQ(json.At("baseline").AsString(), "fp16");
  EXPECT_EQ(json.At("settings").At("--data").AsString(), "hash");
  const JsonValue budget = json.At("budgets").At(size_t{0});
  EXPECT_EQ(budget.At("effective_bits").AsDouble(), 4);
  const JsonValue methods = budget.At("methods");
  ASSERT_EQ(methods.size(), 4u);
  EXPECT_EQ(methods.At(0).At("budget_bytes").AsInt(), 0);
  EXPECT_TRUE(methods.At(0).Find("to_baseline").IsNull());
  const JsonValue method = methods.At(1);
  EXPECT_EQ(method.At("kv").AsString(), kLongSpec);
  EXPECT_EQ(method.At("effective_bits_by_budget").AsDouble(), 4);
  EXPECT_EQ(method.At("effective_bits_by_peak").AsDouble(), 2);
  EXPECT_EQ(method.At("solved").AsInt(), 4);
  EXPECT_EQ(method.At("cut_by_budget").AsInt(), 1);
  const JsonValue pair = method.At("to_baseline");
  EXPECT_EQ(pair.At("both").AsInt(), 4);
  EXPECT_EQ(pair.At("only_other").AsInt(), 3);
  EXPECT_EQ(pair.At("p_value").AsDouble(), 0.25);
  EXPECT_EQ(pair.At("interval").AsDoubleArray().size(), 2u);
  EXPECT_EQ(method.At("levels").At(1).At("solved").AsInt(), 1);
  EXPECT_EQ(methods.At(2).At("needed_bytes").AsInt(), 7 << 20);
  EXPECT_EQ(methods.At(3).At("status").AsString(), "does_not_fit");
  EXPECT_FALSE(methods.At(3).Has("solved"));
}

// The members of a report are those of its counts, to the last bit.
TEST(FiguresOfCounts, AreThoseOfAComparison) {
  const JsonValue report = JsonValue::Parse(FormatComparisonJson(ExampleComparison()), "report");
  const JsonValue method = report.At("budgets").At(size_t{0}).At("methods").At(1);
  const auto figures = [](const std::string& counts) {
    return JsonValue::Parse(FormatFiguresOf(counts, "counts:1"), "figures");
  };
  const auto text = [](const JsonValue& value, const char* key) {
    return std::to_string(value.At(key).AsInt());
  };
  const JsonValue share = figures("{\"solved\":" + text(method, "solved") +
                                  ",\"responses\":" + text(method, "responses") + "}");
  EXPECT_EQ(share.At("share").AsDouble(), method.At("share").AsDouble());
  EXPECT_EQ(share.At("interval").Dump(), method.At("interval").Dump());
  const JsonValue pair = method.At("to_baseline");
  std::string counts;
  for (const char* key : {"both", "only_other", "only_method", "neither"}) {
    counts += std::string(counts.empty() ? "{" : ",") + '"' + key + "\":" + text(pair, key);
  }
  const JsonValue paired = figures(counts + "}");
  EXPECT_EQ(paired.At("difference").AsDouble(), pair.At("difference").AsDouble());
  EXPECT_EQ(paired.At("interval").Dump(), pair.At("interval").Dump());
  EXPECT_EQ(paired.At("p_value").AsDouble(), 0.25);
}

TEST(FiguresOfCounts, RefusesWhatCannotBe) {
  const auto refused = [](const std::string& counts, std::initializer_list<std::string> words) {
    ExpectError<InvalidInput>([&] { FormatFiguresOf(counts, "counts:7"); }, words);
  };
  refused("3 4", {"counts:7"});
  refused(R"({"solved":3})", {"counts:7", "responses"});
  refused(R"({"solved":5,"responses":4})", {"counts:7", "solved", "5", "4"});
  refused(R"({"solved":-1,"responses":4})", {"solved", "-1"});
  refused(R"({"both":1,"only_other":2,"only_method":3})", {"counts:7", "neither"});
  refused(R"({"solved":1,"responses":4,"neither":0})", {"counts:7", "expected"});
}

}  // namespace
}  // namespace pmkvq
