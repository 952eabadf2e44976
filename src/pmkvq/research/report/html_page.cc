#include "pmkvq/research/report/html_page.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "pmkvq/base/check.h"
#include "pmkvq/io/json.h"
#include "pmkvq/research/report/page_assets.h"

namespace pmkvq {
namespace {

// Runs before all other scripts. An error of a later one is then shown on the page, and marked on
// <html> for tests.
constexpr const char* kErrorScript = R"((function () {
  function report(text) {
    const root = document.documentElement;
    if (root.dataset.error === undefined) root.dataset.error = text;
    root.dataset.rendered = "false";
    const place = document.getElementById("error");
    if (place) place.textContent = "This page could not be drawn: " + root.dataset.error;
  }
  window.addEventListener("error", (event) => {
    report(event.message || "a resource could not be loaded");
  }, true);
  window.addEventListener("unhandledrejection", (event) => report(String(event.reason)));
  document.addEventListener("securitypolicyviolation", (event) => {
    report("blocked: " + event.violatedDirective + " " + event.blockedURI);
  });
})();)";

// A library's pointer to its source map would make developer tools look for that file.
std::string_view WithoutSourceMap(std::string_view script) {
  return script.substr(0, script.rfind("\n//# sourceMappingURL="));
}

// JSON inside <script>: no "</script" and no "<!--" can end or change the element.
std::string EscapeScriptJson(const std::string& json) {
  std::string escaped;
  for (const char c : json) {
    if (c == '<') {
      escaped += "\\u003c";
    } else {
      escaped += c;
    }
  }
  return escaped;
}

std::string ChartJson(const Chart& chart) {
  JsonWriter json;
  json.BeginObject();
  json.Key("kind").String(chart.kind == Chart::Kind::kLine ? "line" : "bar");
  json.Key("title").String(chart.title);
  json.Key("xLabel").String(chart.x_label);
  json.Key("yLabel").String(chart.y_label);
  json.Key("logX").Bool(chart.log_x);
  json.Key("logY").Bool(chart.log_y);
  json.Key("stepped").Bool(chart.stepped);
  json.Key("categories").BeginArray();
  for (const std::string& category : chart.categories) json.String(category);
  json.EndArray();
  json.Key("series").BeginArray();
  for (const ChartSeries& series : chart.series) {
    json.BeginObject();
    json.Key("name").String(series.name);
    json.Key("x").Array(series.x);
    json.Key("y").Array(series.y);
    json.Key("dashed").Bool(series.dashed);
    if (!series.low.empty()) {
      json.Key("low").Array(series.low);
      json.Key("high").Array(series.high);
    }
    json.EndObject();
  }
  json.EndArray().EndObject();
  return json.text();
}

// Text whose words, or whose options alone, break inside only where they are wider than the page.
// Browsers break text behind a hyphen, and an option begins with two.
std::string UnbrokenWords(const std::string& text, bool options_only) {
  std::string html;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(' ', begin), text.size());
    const std::string word = text.substr(begin, end - begin);
    const bool is_kept = options_only ? word.starts_with("--") : !word.empty();
    html += is_kept ? "<span>" + EscapeHtml(word) + "</span>" : EscapeHtml(word);
    if (end < text.size()) html += ' ';
    begin = end + 1;
  }
  return html;
}

// Facts without a value are left out.
std::string FormatFacts(const std::vector<std::pair<std::string, std::string>>& facts) {
  std::string text = "<dl>\n";
  for (const auto& [name, value] : facts) {
    if (value.empty()) continue;
    text += fmt::format("<dt>{}</dt><dd>{}</dd>\n", EscapeHtml(name), UnbrokenWords(value, true));
  }
  return text + "</dl>\n";
}

void CheckChart(const Chart& chart) {
  for (const ChartSeries& series : chart.series) {
    const size_t expected =
        chart.kind == Chart::Kind::kBar ? chart.categories.size() : series.x.size();
    PMKVQ_CHECK_MSG(series.y.size() == expected, "a chart's series has another length");
    PMKVQ_CHECK(series.low.size() == series.high.size() &&
                (series.low.empty() || series.low.size() == series.y.size()));
  }
}

}  // namespace

std::string EscapeHtml(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      case '"':
        escaped += "&quot;";
        break;
      case '\'':
        escaped += "&#39;";
        break;
      default:
        escaped += c;
    }
  }
  return escaped;
}

std::string ShellCommand(const std::vector<std::string>& arguments) {
  constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=+./,:@%";
  std::string command;
  for (const std::string& argument : arguments) {
    if (!command.empty()) command += ' ';
    if (!argument.empty() && argument.find_first_not_of(kPlain) == std::string::npos) {
      command += argument;
      continue;
    }
    command += '\'';
    for (const char c : argument) {
      if (c == '\'') {
        command += "'\\''";
      } else {
        command += c;
      }
    }
    command += '\'';
  }
  return command;
}

std::string FormatNumber(double value) {
  if (!std::isfinite(value)) return "-";
  const double size = std::abs(value);
  if (value == 0) return "0";
  if (size < 1e-3 || size >= 1e6) return fmt::format("{:.2e}", value);
  if (size >= 1000) return fmt::format("{:.0f}", value);
  return fmt::format("{:.4g}", value);
}

std::vector<std::vector<TableCell>> HeatRows(const std::vector<std::string>& names,
                                             const std::vector<std::vector<double>>& values) {
  PMKVQ_CHECK(names.size() == values.size());
  double least = std::numeric_limits<double>::infinity();
  double largest = 0;
  for (const std::vector<double>& row : values) {
    for (const double value : row) {
      if (!std::isfinite(value) || value <= 0) continue;
      least = std::min(least, value);
      largest = std::max(largest, value);
    }
  }
  std::vector<std::vector<TableCell>> rows;
  for (size_t i = 0; i < names.size(); ++i) {
    rows.push_back({names[i]});
    for (const double value : values[i]) {
      const bool shaded = std::isfinite(value) && value > 0;
      const double range = std::log(largest / least);
      rows.back().push_back(
          shaded ? TableCell(FormatNumber(value), range > 0 ? std::log(value / least) / range : 0)
                 : TableCell(FormatNumber(value)));
    }
  }
  return rows;
}

HtmlPage::HtmlPage(std::string title, PageOrigin origin)
    : title_(std::move(title)), origin_(std::move(origin)) {}

void HtmlPage::SetVerdict(std::string text) { verdict_ = std::move(text); }

void HtmlPage::SetWarning(std::string text) { warning_ = std::move(text); }

void HtmlPage::AddHeading(const std::string& text) {
  body_ += fmt::format("<h2>{}</h2>\n", EscapeHtml(text));
}

void HtmlPage::AddParagraph(const std::string& text) {
  body_ += fmt::format("<p>{}</p>\n", EscapeHtml(text));
}

void HtmlPage::AddFacts(const std::vector<std::pair<std::string, std::string>>& facts) {
  body_ += FormatFacts(facts);
}

void HtmlPage::AddChart(const Chart& chart) {
  CheckChart(chart);
  body_ += fmt::format(
      "<figure><div class=\"chart\"><canvas id=\"chart-{}\" role=\"img\" aria-label=\"{}\">"
      "</canvas></div></figure>\n",
      charts_.size(), EscapeHtml(chart.title));
  charts_.push_back(ChartJson(chart));
}

void HtmlPage::AddTable(const Table& table) {
  // Strong enough to see, weak enough to read the number on it.
  constexpr double kStrongestShade = 0.6;
  body_ += "<div class=\"scroll\"><table>\n";
  if (!table.caption.empty()) {
    body_ += fmt::format("<caption>{}</caption>\n", EscapeHtml(table.caption));
  }
  body_ += "<thead><tr>";
  for (const std::string& name : table.header) {
    body_ += fmt::format("<th>{}</th>", EscapeHtml(name));
  }
  body_ += "</tr></thead>\n<tbody>\n";
  for (const std::vector<TableCell>& row : table.rows) {
    PMKVQ_CHECK_MSG(row.size() == table.header.size(), "a table's row has another length");
    body_ += "<tr>";
    for (const TableCell& cell : row) {
      body_ += std::isfinite(cell.heat)
                   ? fmt::format("<td class=\"heat\" style=\"--h:{:.3f}\">{}</td>",
                                 kStrongestShade * cell.heat, EscapeHtml(cell.text))
                   : fmt::format("<td>{}</td>", EscapeHtml(cell.text));
    }
    body_ += "</tr>\n";
  }
  body_ += "</tbody></table></div>\n";
}

std::string HtmlPage::Render() const {
  std::string page = "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n";
  page +=
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src "
      "'unsafe-inline'; style-src 'unsafe-inline'; img-src data:\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<meta name=\"color-scheme\" content=\"light dark\">\n"
      "<link rel=\"icon\" href=\"data:,\">\n";
  page += "<title>" + EscapeHtml(title_) + "</title>\n";
  page += std::string("<script>") + kErrorScript + "</script>\n";
  page += "<style>\n" + std::string(embedded::kPageCss) + "</style>\n</head>\n<body>\n";
  page += "<h1>" + EscapeHtml(title_) + "</h1>\n<p id=\"error\" class=\"error\"></p>\n";
  if (!verdict_.empty()) page += "<p class=\"verdict\">" + EscapeHtml(verdict_) + "</p>\n";
  if (!warning_.empty()) page += "<p class=\"warning\">" + EscapeHtml(warning_) + "</p>\n";
  page += FormatFacts({{"model", origin_.model},
                       {"plan", origin_.plan},
                       {"made", origin_.date},
                       {"pmkvq", origin_.version}});
  page += "<pre>" + UnbrokenWords(origin_.command, false) + "</pre>\n";
  page += body_;
  page += "<script id=\"charts\" type=\"application/json\">[";
  for (size_t i = 0; i < charts_.size(); ++i) {
    page += (i > 0 ? ",\n" : "\n") + EscapeScriptJson(charts_[i]);
  }
  page += "\n]</script>\n<script>";
  page += WithoutSourceMap(embedded::kChartJs);
  page += "\n</script>\n<script>\n" + std::string(embedded::kPageJs) + "</script>\n";
  return page + "</body>\n</html>\n";
}

}  // namespace pmkvq
