// Interpolation as JSON and as a page.
#include <fmt/format.h>

#include <algorithm>

#include "pmkvq/base/byte_size.h"
#include "pmkvq/io/json.h"
#include "pmkvq/research/analysis/interpolation.h"
#include "pmkvq/research/analysis/placement.h"
#include "pmkvq/research/analysis/series.h"

namespace pmkvq {
namespace {

std::string LengthName(int64_t seq_len) { return fmt::format("{} tokens", seq_len); }

// A line per context length over the factors.
class Curves {
 public:
  Curves(const Interpolation& interpolation, std::string title, std::string y_label)
      : interpolation_(interpolation) {
    chart_.title = std::move(title);
    chart_.x_label = "stretching factor s (position distance between tokens)";
    chart_.y_label = std::move(y_label);
    chart_.log_x = true;
  }

  Curves& LogY() {
    chart_.log_y = true;
    return *this;
  }

  template <class Value>
  Curves& Add(const std::string& suffix, bool dashed, const Value& value) {
    for (const InterpolationPoint& point : interpolation_.points) {
      const std::string name = LengthName(point.seq_len) + suffix;
      if (chart_.series.empty() || chart_.series.back().name != name) {
        chart_.series.push_back({name, {}, {}, dashed});
      }
      chart_.series.back().x.push_back(static_cast<double>(point.factor));
      chart_.series.back().y.push_back(value(point));
    }
    return *this;
  }

  void To(HtmlPage& page) const {
    page.AddChart(chart_);
    Table table{chart_.y_label, {"context length"}, {}};
    for (const double factor : chart_.series.front().x) {
      table.header.push_back(fmt::format("s = {:.0f}", factor));
    }
    for (const ChartSeries& series : chart_.series) {
      table.rows.push_back({series.name});
      for (const double value : series.y) table.rows.back().push_back(FormatNumber(value));
    }
    page.AddTable(table);
  }

 private:
  const Interpolation& interpolation_;
  Chart chart_;
};

void AddIntroduction(const Interpolation& interpolation, HtmlPage& page) {
  page.AddParagraph(
      "Calibration with positional interpolation rotates token m of a text as if it stood at "
      "position s * m, so that short texts reach the positions of long ones. Here key ranges, key "
      "scales and sensitivities are measured with each s, a plan is made of them, and pm-kvq runs "
      "with that plan on long texts at their real positions. s = 1 is plain calibration.");
  std::string samples, texts;
  for (size_t i = 0; i < interpolation.num_samples.size(); ++i) {
    const size_t factors = interpolation.points.size() / interpolation.num_samples.size();
    samples += fmt::format("{}{} of {} tokens", i > 0 ? ", " : "", interpolation.num_samples[i],
                           interpolation.points[i * factors].seq_len);
  }
  for (const int64_t tokens : interpolation.text_tokens) {
    texts += fmt::format("{}{}", texts.empty() ? "" : ", ", tokens);
  }
  page.AddFacts(
      {{"calibration samples", samples},
       {"evaluation texts (tokens)", texts},
       {"budget", fmt::format("{} for {} tokens, all blocks",
                              FormatByteSize(interpolation.allocation.memory_budget_bytes),
                              interpolation.allocation.max_len)},
       {"model's positions", std::to_string(interpolation.max_positions)}});
}

void AddCalibration(const Interpolation& interpolation, HtmlPage& page) {
  page.AddHeading("Does the model still understand stretched text?");
  page.AddParagraph(
      "Loss of the calibration texts at the stretched positions. A model that relies on exact "
      "distances loses its grip here, and then what is measured is not what happens in use.");
  Curves(interpolation, "Loss of the calibration pass", "loss (nats per token)")
      .Add("", false, [](const InterpolationPoint& point) { return point.calibration_loss; })
      .To(page);
}

void AddCache(const Interpolation& interpolation, HtmlPage& page) {
  page.AddHeading("The resulting cache on long texts");
  page.AddParagraph(
      "pm-kvq with the plan of each calibration, against fp16 on the same texts. Dashed: the "
      "placement of bits alone, without key scales.");
  Curves(interpolation, "KL to fp16 on long texts", "KL(fp16 || cache) (nats)")
      .LogY()
      .Add("", false, [](const InterpolationPoint& point) { return point.cache.kl; })
      .Add(", placement only", true,
           [](const InterpolationPoint& point) { return point.placement_only.kl; })
      .To(page);
  Curves(interpolation, "Increase of the loss on long texts", "loss increase (nats)")
      .Add("", false,
           [](const InterpolationPoint& point) { return point.cache.loss - point.cache.fp16_loss; })
      .Add(", placement only", true,
           [](const InterpolationPoint& point) {
             return point.placement_only.loss - point.placement_only.fp16_loss;
           })
      .To(page);
}

void AddPlans(const Interpolation& interpolation, HtmlPage& page) {
  page.AddHeading("What calibration chose");
  Curves(interpolation, "Exponent of the key scales, mean over blocks", "alpha")
      .Add("", false, [](const InterpolationPoint& point) { return MeanOf(point.alpha); })
      .To(page);
  Table alphas{"alpha of each block", {"context, factor"}, {}};
  Table plans{"Placement; rank correlation (Spearman) of the sensitivities with the first factor's",
              {"context, factor", "reaches position", "bits by block", "rank correlation"},
              {}};
  for (size_t block = 0; block < interpolation.points[0].alpha.size(); ++block) {
    alphas.header.push_back(fmt::format("{}", block));
  }
  for (const InterpolationPoint& point : interpolation.points) {
    const std::string name = fmt::format("{}, s = {}", LengthName(point.seq_len), point.factor);
    alphas.rows.push_back({name});
    for (const double alpha : point.alpha) {
      alphas.rows.back().push_back(TableCell(fmt::format("{:.2f}", alpha), alpha));
    }
    plans.rows.push_back({name, std::to_string(point.effective_len()),
                          WidthsText(point.k_bits, point.v_bits),
                          fmt::format("{:.3f}", point.rank_correlation)});
  }
  page.AddTable(alphas);
  page.AddTable(plans);
}

void WriteMeans(JsonWriter& json, const CacheMeans& means) {
  json.BeginObject();
  json.Key("predictions").Int(means.num_predictions);
  json.Key("fp16_loss").Number(means.fp16_loss);
  json.Key("loss").Number(means.loss);
  json.Key("loss_increase").Number(means.loss - means.fp16_loss);
  json.Key("kl").Number(means.kl);
  json.EndObject();
}

}  // namespace

std::string InterpolationJson(const Interpolation& interpolation, const std::string& command) {
  JsonWriter json(2);
  json.BeginObject();
  json.Key("analysis").String("interpolation");
  json.Key("command").String(command);
  json.Key("memory_budget_bytes").Int(interpolation.allocation.memory_budget_bytes);
  json.Key("max_len").Int(interpolation.allocation.max_len);
  json.Key("evaluation_tokens").Array(interpolation.text_tokens);
  json.Key("points").BeginArray();
  for (const InterpolationPoint& point : interpolation.points) {
    json.BeginObject();
    json.Key("seq_len").Int(point.seq_len);
    json.Key("factor").Int(point.factor);
    json.Key("effective_len").Int(point.effective_len());
    json.Key("calibration_loss").Number(point.calibration_loss);
    json.Key("alpha").Array(point.alpha);
    json.Key("k_bits").Array(point.k_bits);
    json.Key("v_bits").Array(point.v_bits);
    json.Key("rank_correlation").Number(point.rank_correlation);
    json.Key("cache");
    WriteMeans(json, point.cache);
    json.Key("placement_only");
    WriteMeans(json, point.placement_only);
    json.EndObject();
  }
  json.EndArray().EndObject();
  return json.text();
}

std::string InterpolationVerdict(const Interpolation& interpolation) {
  std::string text;
  for (size_t begin = 0; begin < interpolation.points.size();) {
    const InterpolationPoint& first = interpolation.points[begin];
    const InterpolationPoint* best = &first;
    const InterpolationPoint* confused = nullptr;
    size_t end = begin;
    for (; end < interpolation.points.size(); ++end) {
      const InterpolationPoint& point = interpolation.points[end];
      if (point.seq_len != first.seq_len) break;
      if (point.cache.kl < best->cache.kl) best = &point;
      // A tenth of the loss is more than samples differ by.
      if (confused == nullptr && point.calibration_loss > 1.1 * first.calibration_loss) {
        confused = &point;
      }
    }
    text += fmt::format("{}{} of context: ", text.empty() ? "" : " ", LengthName(first.seq_len));
    text += best == &first ? fmt::format("no stretching is best (KL {} with s = {})",
                                         FormatNumber(first.cache.kl), first.factor)
                           : fmt::format("KL is least with s = {} ({}; {} with s = {})",
                                         best->factor, FormatNumber(best->cache.kl),
                                         FormatNumber(first.cache.kl), first.factor);
    text += confused == nullptr
                ? "; the model understands all stretched texts."
                : fmt::format("; the model loses the text at s = {} (loss {} instead of {}).",
                              confused->factor, FormatNumber(confused->calibration_loss),
                              FormatNumber(first.calibration_loss));
    begin = end;
  }
  return text;
}

HtmlPage InterpolationPage(const Interpolation& interpolation, const PageOrigin& origin) {
  HtmlPage page("Positional interpolation in calibration", origin);
  page.SetVerdict(InterpolationVerdict(interpolation));
  AddIntroduction(interpolation, page);
  AddCalibration(interpolation, page);
  AddCache(interpolation, page);
  AddPlans(interpolation, page);
  return page;
}

}  // namespace pmkvq
