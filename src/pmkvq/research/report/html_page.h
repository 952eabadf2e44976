// One self-contained HTML page of charts and tables, readable in light and dark.
//
// Everything is inside the file: the charting library (third_party/chart.js), styles, numbers. The
// page forbids itself every load from outside (Content-Security-Policy). When all charts are drawn
// its script sets data-rendered="true" on <html>; the first error goes to data-error instead.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace pmkvq {

// `text` with & < > " ' written as entities: for content and for quoted attribute values.
std::string EscapeHtml(std::string_view text);

// The arguments as a command for a shell, quoted where they have to be.
std::string ShellCommand(const std::vector<std::string>& arguments);

// A number for a table: about four digits, "-" when it is not finite.
std::string FormatNumber(double value);

// One line, or one set of bars. x and y have the same size; of bars y alone is used, one value per
// category. A y that is not finite is a gap; so is one <= 0 on a logarithmic axis.
struct ChartSeries {
  std::string name;
  std::vector<double> x;
  std::vector<double> y;
  bool dashed = false;
  // Ends of an interval around each y, drawn as a bar: kLine only, both empty for none.
  std::vector<double> low = {};
  std::vector<double> high = {};
};

struct Chart {
  enum class Kind : uint8_t { kLine, kBar };
  Kind kind = Kind::kLine;
  std::string title;
  std::string x_label;  // With its unit in brackets, as y_label.
  std::string y_label;
  // kLine only; ticks at the x values of the first series, or round ones where it has intervals.
  // Marks with intervals that would cover each other are drawn side by side.
  bool log_x = false;
  bool log_y = false;
  bool stepped = false;                 // kLine: a value holds until the next one.
  std::vector<std::string> categories;  // kBar.
  std::vector<ChartSeries> series;
};

struct TableCell {
  TableCell(std::string cell_text) : text(std::move(cell_text)) {}  // NOLINT: texts are cells
  TableCell(const char* cell_text) : text(cell_text) {}             // NOLINT
  TableCell(std::string cell_text, double cell_heat)
      : text(std::move(cell_text)), heat(cell_heat) {}

  std::string text;
  // 0 .. 1 shades the cell; NaN does not.
  double heat = std::numeric_limits<double>::quiet_NaN();
};

struct Table {
  std::string caption;
  std::vector<std::string> header;
  std::vector<std::vector<TableCell>> rows;  // As many cells as the header; the first is a name.
};

// Shades cells by the logarithm of their value: the least positive value 0, the largest 1.
// Values that are not positive stay unshaded. Cells are made by FormatNumber.
std::vector<std::vector<TableCell>> HeatRows(const std::vector<std::string>& names,
                                             const std::vector<std::vector<double>>& values);

// Where a page comes from, shown in its head. Fields that are empty are left out.
struct PageOrigin {
  std::string command;  // That made the page.
  std::string model;    // Its folder.
  std::string plan;     // Its file.
  std::string version;  // Of pmkvq, with its commit.
  std::string date;
};

class HtmlPage {
 public:
  HtmlPage(std::string title, PageOrigin origin);

  // Both are shown at the top, above the origin: the result in one or two sentences, and a warning
  // about the numbers.
  void SetVerdict(std::string text);
  void SetWarning(std::string text);

  // In the order in which they are added. Text is plain text.
  void AddHeading(const std::string& text);
  void AddParagraph(const std::string& text);
  void AddFacts(const std::vector<std::pair<std::string, std::string>>& facts);
  void AddChart(const Chart& chart);
  void AddTable(const Table& table);

  std::string Render() const;

 private:
  std::string title_;
  PageOrigin origin_;
  std::string verdict_;
  std::string warning_;
  std::string body_;
  std::vector<std::string> charts_;  // JSON, see html_page.js
};

}  // namespace pmkvq
