#include "pmkvq/research/report/html_page.h"

#include <gtest/gtest.h>

#include <cmath>

#include "pmkvq/io/file.h"
#include "pmkvq/io/json.h"
#include "pmkvq/research/report/page_assets.h"

namespace pmkvq {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

size_t Count(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

// What the page's script reads.
JsonValue ChartsOf(const std::string& page) {
  const std::string begin_mark = "<script id=\"charts\" type=\"application/json\">";
  const size_t begin = page.find(begin_mark) + begin_mark.size();
  const size_t end = page.find("</script>", begin);
  return JsonValue::Parse(page.substr(begin, end - begin), "page");
}

TEST(EscapeHtml, WritesTheFiveSpecialCharactersAsEntities) {
  EXPECT_EQ(EscapeHtml("a<b> & \"c\" 'd'"), "a&lt;b&gt; &amp; &quot;c&quot; &#39;d&#39;");
  EXPECT_EQ(EscapeHtml("plain é"), "plain é");
  EXPECT_EQ(EscapeHtml("&amp;"), "&amp;amp;");
}

TEST(ShellCommand, QuotesWhatAShellWouldRead) {
  EXPECT_EQ(ShellCommand({"pmkvq", "analyze", "--kv", "kivi:bits=2+group=32"}),
            "pmkvq analyze --kv kivi:bits=2+group=32");
  EXPECT_EQ(ShellCommand({"a b", "", "it's", "$x"}), "'a b' '' 'it'\\''s' '$x'");
}

TEST(FormatNumber, KeepsAboutFourDigits) {
  EXPECT_EQ(FormatNumber(0), "0");
  EXPECT_EQ(FormatNumber(0.25), "0.25");
  EXPECT_EQ(FormatNumber(12.34567), "12.35");
  EXPECT_EQ(FormatNumber(-0.0001234), "-1.23e-04");
  EXPECT_EQ(FormatNumber(65536), "65536");
  EXPECT_EQ(FormatNumber(kNaN), "-");
}

TEST(HeatRows, ShadesByTheLogarithm) {
  const auto rows = HeatRows({"a", "b"}, {{1, 10, 0}, {100, kNaN, -1}});
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0][0].text, "a");
  EXPECT_TRUE(std::isnan(rows[0][0].heat));
  EXPECT_DOUBLE_EQ(rows[0][1].heat, 0);
  EXPECT_DOUBLE_EQ(rows[0][2].heat, 0.5);
  EXPECT_TRUE(std::isnan(rows[0][3].heat));
  EXPECT_DOUBLE_EQ(rows[1][1].heat, 1);
  EXPECT_EQ(rows[1][2].text, "-");
  EXPECT_TRUE(std::isnan(rows[1][3].heat));
}

TEST(HtmlPage, HoldsTextTablesAndChartsInOrder) {
  HtmlPage page("Title <1>", {"pmkvq 'x' & y", "models/<m>", "", "1.2", "today"});
  page.SetVerdict("b > a");
  page.SetWarning("a & b");
  page.AddHeading("First");
  page.AddParagraph("a < b");
  page.AddFacts({{"name", "<value>"}, {"settings", "a --top-p 1"}});
  Chart chart;
  chart.title = "A \"chart\"";
  chart.x_label = "x (tokens)";
  chart.y_label = "y (nats)";
  chart.log_y = true;
  chart.series.push_back({"one", {1, 2}, {0.5, kNaN}});
  chart.series.push_back({"two", {1}, {5}, false, {4}, {7}});
  page.AddChart(chart);
  page.AddTable({"caption", {"head", "h2"}, {{"row", TableCell("7", 0.5)}}});
  const std::string html = page.Render();
  EXPECT_EQ(Count(html, "<title>Title &lt;1&gt;</title>"), 1u);
  EXPECT_EQ(Count(html,
                  "<pre><span>pmkvq</span> <span>&#39;x&#39;</span> "
                  "<span>&amp;</span> <span>y</span></pre>"),
            1u);
  EXPECT_EQ(Count(html, "<p>a &lt; b</p>"), 1u);
  EXPECT_EQ(Count(html, "<dd>&lt;value&gt;</dd>"), 1u);
  EXPECT_EQ(Count(html, "<dd>a <span>--top-p</span> 1</dd>"), 1u);
  EXPECT_EQ(Count(html, "aria-label=\"A &quot;chart&quot;\""), 1u);
  EXPECT_EQ(Count(html, "<td class=\"heat\" style=\"--h:0.300\">7</td>"), 1u);
  // Verdict, warning and origin come first; there is no plan.
  EXPECT_EQ(Count(html, "<p class=\"verdict\">b &gt; a</p>"), 1u);
  EXPECT_EQ(Count(html, "<p class=\"warning\">a &amp; b</p>"), 1u);
  EXPECT_EQ(Count(html, "<dt>model</dt><dd>models/&lt;m&gt;</dd>"), 1u);
  EXPECT_EQ(Count(html, "<dt>made</dt><dd>today</dd>"), 1u);
  EXPECT_EQ(Count(html, "<dt>plan</dt>"), 0u);
  EXPECT_LT(html.find("b &gt; a"), html.find("<pre>"));
  EXPECT_LT(html.find("<pre>"), html.find("<h2>First</h2>"));
  EXPECT_LT(html.find("<h2>First</h2>"), html.find("<canvas"));
  EXPECT_LT(html.find("<canvas"), html.find("<table>"));

  const JsonValue charts = ChartsOf(html);
  ASSERT_EQ(charts.size(), 1u);
  const JsonValue first = charts.At(size_t{0});
  EXPECT_EQ(first.At("kind").AsString(), "line");
  EXPECT_EQ(first.At("title").AsString(), chart.title);
  EXPECT_EQ(first.At("yLabel").AsString(), "y (nats)");
  EXPECT_TRUE(first.At("logY").AsBool());
  EXPECT_FALSE(first.At("logX").AsBool());
  const JsonValue series = first.At("series").At(size_t{0});
  EXPECT_EQ(series.At("x").AsDoubleArray(), (std::vector<double>{1, 2}));
  EXPECT_EQ(series.At("y").At(size_t{0}).AsDouble(), 0.5);
  EXPECT_TRUE(series.At("y").At(size_t{1}).IsNull());
  EXPECT_FALSE(series.Has("low"));
  const JsonValue second = first.At("series").At(size_t{1});
  EXPECT_EQ(second.At("low").AsDoubleArray(), (std::vector<double>{4}));
  EXPECT_EQ(second.At("high").AsDoubleArray(), (std::vector<double>{7}));
}

TEST(HtmlPage, ANameCannotEndTheScript) {
  HtmlPage page("t", {});
  Chart chart;
  chart.kind = Chart::Kind::kBar;
  chart.categories = {"</script><b>", "<!--"};
  chart.series.push_back({"s", {}, {1, 2}});
  page.AddChart(chart);
  const std::string html = page.Render();
  EXPECT_EQ(html.find("</script><b>"), std::string::npos);
  const JsonValue categories = ChartsOf(html).At(size_t{0}).At("categories");
  EXPECT_EQ(categories.At(size_t{0}).AsString(), "</script><b>");
  EXPECT_EQ(categories.At(size_t{1}).AsString(), "<!--");
}

TEST(HtmlPage, LoadsNothing) {
  HtmlPage page("t", {});
  const std::string html = page.Render();
  EXPECT_EQ(html.find(" src="), std::string::npos);
  EXPECT_EQ(html.find("href=\"http"), std::string::npos);
  EXPECT_EQ(html.find("sourceMappingURL"), std::string::npos);
  EXPECT_NE(html.find("default-src 'none'"), std::string::npos);
}

TEST(PageAssets, AreTheFilesByteForByte) {
  const std::string root = PMKVQ_SOURCE_DIR;
  EXPECT_TRUE(embedded::kChartJs == ReadFile(root + "/third_party/chart.js/chart.umd.min.js"));
  EXPECT_TRUE(embedded::kPageCss == ReadFile(root + "/src/pmkvq/research/report/html_page.css"));
  EXPECT_TRUE(embedded::kPageJs == ReadFile(root + "/src/pmkvq/research/report/html_page.js"));
}

}  // namespace
}  // namespace pmkvq
