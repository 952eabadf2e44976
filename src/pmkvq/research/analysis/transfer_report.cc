// Transfer as JSON and as a page.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "pmkvq/base/byte_size.h"
#include "pmkvq/io/json.h"
#include "pmkvq/research/analysis/placement.h"
#include "pmkvq/research/analysis/transfer.h"

namespace pmkvq {
namespace {

// Geometric mean: a large KL does not decide alone.
struct MeanKl {
  double sum_of_logs = 0;
  int64_t count = 0;

  void Add(double kl) {
    sum_of_logs += std::log(kl);
    ++count;
  }
  double value() const { return std::exp(sum_of_logs / static_cast<double>(count)); }
};

// A cache that quantised nothing has a KL of rounding alone, whose logarithm would decide a mean.
// All rows are compared on the same tasks, so such a task is left out of all.
bool IsQuantisedByAll(const Transfer& transfer, size_t task) {
  return std::all_of(transfer.rows.begin(), transfer.rows.end(),
                     [&](const TransferRow& row) { return row.on_task[task].kl >= kRoundingKl; });
}

double LossIncrease(const CacheMeans& means) { return means.loss - means.fp16_loss; }

std::string RowName(const TransferRow& row) {
  return row.is_reference ? row.name : "calibrated on " + row.name;
}

std::vector<std::string> TaskNames(const Transfer& transfer) {
  std::vector<std::string> names;
  for (const TaskTexts& task : transfer.tasks) names.push_back(task.name);
  return names;
}

std::vector<std::string> HeaderOf(const std::string& first, const std::vector<std::string>& names) {
  std::vector<std::string> header = {first};
  header.insert(header.end(), names.begin(), names.end());
  return header;
}

void AddIntroduction(const Transfer& transfer, HtmlPage& page) {
  page.AddParagraph(
      "For each task the sensitivities of its own texts decide which blocks get more bits, under "
      "the same budget. Each placement then runs on other texts of every task. If sensitivities "
      "transfer, all rows of one column are alike. Three rows are there to compare with: the mean "
      "of all tasks' sensitivities, the placement by sensitivities of the mirrored blocks "
      "(mirrored), "
      "and the same bytes split evenly over blocks (uniform).");
  std::string calibration, evaluation;
  for (const TaskTexts& task : transfer.tasks) {
    size_t tokens = 0;
    for (const std::vector<int32_t>& text : task.evaluation) tokens += text.size();
    const char* separator = calibration.empty() ? "" : ", ";
    calibration += fmt::format("{}{} {}", separator, task.name, task.calibration.tokens.size());
    evaluation +=
        fmt::format("{}{} {} ({} tokens)", separator, task.name, task.evaluation.size(), tokens);
  }
  std::string choices;
  for (const int bits : transfer.allocation.fbit_choices) {
    choices += (choices.empty() ? "" : ", ") + std::to_string(bits);
  }
  page.AddFacts({{"calibration samples", fmt::format("{}; {} tokens each", calibration,
                                                     transfer.tasks[0].calibration.seq_len)},
                 {"evaluation texts", evaluation},
                 {"budget", fmt::format("{} for {} tokens, all blocks",
                                        FormatByteSize(transfer.allocation.memory_budget_bytes),
                                        transfer.allocation.max_len)},
                 {"final widths to choose from", choices}});
}

// One bar chart and one shaded matrix of a number per row and task.
void AddMatrix(const Transfer& transfer, const std::string& title, const std::string& label,
               double (*value)(const CacheMeans&), bool log_y, HtmlPage& page) {
  Chart chart;
  chart.kind = Chart::Kind::kBar;
  chart.title = title;
  chart.x_label = "task that it is measured on";
  chart.y_label = label;
  chart.log_y = log_y;
  chart.categories = TaskNames(transfer);
  std::vector<std::string> names;
  std::vector<std::vector<double>> matrix;
  for (const TransferRow& row : transfer.rows) {
    matrix.emplace_back();
    for (const CacheMeans& means : row.on_task) matrix.back().push_back(value(means));
    names.push_back(RowName(row));
    chart.series.push_back({RowName(row), {}, matrix.back()});
  }
  page.AddChart(chart);
  page.AddTable({label + ", measured on", HeaderOf("placement", TaskNames(transfer)),
                 HeatRows(names, matrix)});
}

void AddPlacements(const Transfer& transfer, HtmlPage& page) {
  page.AddHeading("Placements");
  Table table{"Final width of each block, from the first", {"placement", "bits", "bytes"}, {}};
  for (const TransferRow& row : transfer.rows) {
    int64_t bytes = 0;
    for (const int64_t block : row.budget_bytes) bytes += block;
    table.rows.push_back({RowName(row),
                          row.k_bits.empty() ? "even budgets" : WidthsText(row.k_bits, row.v_bits),
                          FormatByteSize(bytes)});
  }
  page.AddTable(table);
}

void AddSensitivities(const Transfer& transfer, HtmlPage& page) {
  page.AddHeading("Sensitivities");
  Chart chart;
  chart.title = "Sensitivity of each block, K and V together, at the narrowest width";
  chart.x_label = "block";
  chart.y_label = "mean |(Q(x) - x) dL/dx| (nats)";
  chart.log_y = true;
  Table table{chart.title + ": " + chart.y_label, {"task"}, {}};
  std::vector<std::vector<double>> values;
  for (size_t i = 0; i < transfer.tasks.size(); ++i) {
    values.push_back(BlockSensitivities(transfer.sensitivity[i], transfer.allocation.fbit_choices));
    ChartSeries series{transfer.tasks[i].name, {}, values.back()};
    for (size_t block = 0; block < values.back().size(); ++block) {
      series.x.push_back(static_cast<double>(block));
    }
    chart.series.push_back(series);
  }
  for (size_t block = 0; block < values.front().size(); ++block) {
    table.header.push_back(fmt::format("block {}", block));
  }
  table.rows = HeatRows(TaskNames(transfer), values);
  page.AddChart(chart);
  page.AddTable(table);

  Table correlation{"Rank correlation (Spearman) of the blocks' sensitivities: 1 is the same order",
                    HeaderOf("task", TaskNames(transfer)),
                    {}};
  for (size_t i = 0; i < transfer.tasks.size(); ++i) {
    correlation.rows.push_back({transfer.tasks[i].name});
    for (const double value : transfer.rank_correlation[i]) {
      correlation.rows.back().push_back(fmt::format("{:.3f}", value));
    }
  }
  page.AddTable(correlation);
}

void WriteSide(JsonWriter& json, const std::vector<std::vector<double>>& side) {
  json.BeginObject();
  for (size_t width = 0; width < side.size(); ++width) {
    json.Key(std::to_string(kWidths[width])).Array(side[width]);
  }
  json.EndObject();
}

void WriteRow(JsonWriter& json, const Transfer& transfer, const TransferRow& row) {
  json.BeginObject();
  json.Key("name").String(row.name);
  json.Key("reference").Bool(row.is_reference);
  json.Key("k_bits").Array(row.k_bits);
  json.Key("v_bits").Array(row.v_bits);
  json.Key("budget_bytes").Array(row.budget_bytes);
  json.Key("on").BeginObject();
  for (size_t task = 0; task < row.on_task.size(); ++task) {
    const CacheMeans& means = row.on_task[task];
    json.Key(transfer.tasks[task].name).BeginObject();
    json.Key("predictions").Int(means.num_predictions);
    json.Key("fp16_loss").Number(means.fp16_loss);
    json.Key("loss").Number(means.loss);
    json.Key("loss_increase").Number(LossIncrease(means));
    json.Key("kl").Number(means.kl);
    json.EndObject();
  }
  json.EndObject().EndObject();
}

}  // namespace

std::string TransferJson(const Transfer& transfer, const std::string& command) {
  JsonWriter json(2);
  json.BeginObject();
  json.Key("analysis").String("transfer");
  json.Key("command").String(command);
  json.Key("memory_budget_bytes").Int(transfer.allocation.memory_budget_bytes);
  json.Key("max_len").Int(transfer.allocation.max_len);
  json.Key("tasks").BeginArray();
  for (size_t i = 0; i < transfer.tasks.size(); ++i) {
    json.BeginObject();
    json.Key("name").String(transfer.tasks[i].name);
    json.Key("calibration_samples").Int(std::ssize(transfer.tasks[i].calibration.tokens));
    json.Key("evaluation_texts").Int(std::ssize(transfer.tasks[i].evaluation));
    json.Key("sensitivity").BeginObject();
    json.Key("k");
    WriteSide(json, transfer.sensitivity[i].k);
    json.Key("v");
    WriteSide(json, transfer.sensitivity[i].v);
    json.EndObject().EndObject();
  }
  json.EndArray();
  json.Key("rank_correlation").BeginArray();
  for (const std::vector<double>& row : transfer.rank_correlation) json.Array(row);
  json.EndArray();
  json.Key("rows").BeginArray();
  for (const TransferRow& row : transfer.rows) WriteRow(json, transfer, row);
  json.EndArray().EndObject();
  return json.text();
}

std::string TransferVerdict(const Transfer& transfer) {
  std::vector<size_t> used;
  std::string left_out;
  for (size_t task = 0; task < transfer.tasks.size(); ++task) {
    if (IsQuantisedByAll(transfer, task)) {
      used.push_back(task);
    } else {
      left_out += (left_out.empty() ? "" : ", ") + transfer.tasks[task].name;
    }
  }
  if (used.empty()) {
    return "On every task some cache held the texts without quantising them: there is no damage to "
           "compare. A smaller budget or longer texts make some.";
  }
  MeanKl own, other;
  std::string references;
  for (const TransferRow& row : transfer.rows) {
    MeanKl of_row;
    for (const size_t task : used) {
      const double kl = row.on_task[task].kl;
      of_row.Add(kl);
      if (!row.is_reference) (row.name == transfer.tasks[task].name ? own : other).Add(kl);
    }
    if (row.is_reference) {
      references += fmt::format(", {}: {}", row.name, FormatNumber(of_row.value()));
    }
  }
  std::string text = fmt::format("Mean KL to fp16 (geometric) with a task's own sensitivities: {}",
                                 FormatNumber(own.value()));
  if (other.count > 0) {
    text += fmt::format(", with another task's: {} ({:+.0f} %)", FormatNumber(other.value()),
                        100 * (other.value() / own.value() - 1));
  }
  text += references + ".";
  if (!left_out.empty()) {
    text += fmt::format(" Left out: {}, whose texts some cache held without quantising them.",
                        left_out);
  }
  return text;
}

HtmlPage TransferPage(const Transfer& transfer, const PageOrigin& origin) {
  HtmlPage page("Transfer of sensitivities between tasks", origin);
  page.SetVerdict(TransferVerdict(transfer));
  AddIntroduction(transfer, page);
  page.AddHeading("Damage on every task");
  page.AddParagraph(
      "KL from fp16's next-token distribution to that of the cache, and the increase of the "
      "loss over fp16's, both teacher-forced and mean over all tokens of the texts. An increase "
      "may be below 0: damage can make a wrong token likelier and the right one, too.");
  AddMatrix(
      transfer, "KL to fp16 of each placement on each task", "KL(fp16 || cache) (nats)",
      [](const CacheMeans& means) { return means.kl; }, true, page);
  AddMatrix(transfer, "Increase of the loss of each placement on each task", "loss increase (nats)",
            LossIncrease, false, page);
  AddPlacements(transfer, page);
  AddSensitivities(transfer, page);
  return page;
}

}  // namespace pmkvq
