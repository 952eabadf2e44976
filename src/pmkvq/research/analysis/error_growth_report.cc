// ErrorGrowth as JSON and as a page.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "pmkvq/base/byte_size.h"
#include "pmkvq/base/strings.h"
#include "pmkvq/io/json.h"
#include "pmkvq/research/analysis/error_growth.h"

namespace pmkvq {
namespace {

void WriteLaw(JsonWriter& json, const PowerLaw& law) {
  json.BeginObject();
  json.Key("points").Int(law.num_points);
  json.Key("exponent").Number(law.exponent);
  json.Key("coefficient").Number(law.coefficient);
  json.Key("r_squared").Number(law.r_squared);
  json.EndObject();
}

void WriteCache(JsonWriter& json, const CacheGrowth& cache) {
  std::vector<double> loss, kl, attention;
  for (const Prediction& prediction : cache.trace.predictions) {
    loss.push_back(prediction.loss);
    kl.push_back(prediction.kl);
  }
  std::vector<int64_t> positions, bytes;
  for (const AttentionSample& sample : cache.trace.attention) {
    positions.push_back(sample.position);
    bytes.push_back(sample.bytes);
    attention.push_back(MeanOf(sample.kl));
  }
  json.BeginObject();
  json.Key("kv").String(cache.spec);
  json.Key("peak_bytes").Int(cache.trace.peak_bytes);
  json.Key("budget_bytes").Int(cache.trace.budget_bytes);
  json.Key("budget_spent_at");
  cache.trace.spent_at < 0 ? json.Null() : json.Int(cache.trace.spent_at);
  json.Key("mean_kl").Number(cache.mean_kl);
  json.Key("mean_attention_kl").Number(cache.mean_attention);
  json.Key("late_over_early").Number(cache.late_over_early);
  json.Key("kl_growth");
  WriteLaw(json, cache.kl_law);
  json.Key("attention_growth");
  WriteLaw(json, cache.attention_law);
  json.Key("first_disagreement");
  cache.disagreements.empty() ? json.Null() : json.Int(cache.disagreements.front());
  json.Key("disagreements").Array(cache.disagreements);
  json.Key("gold_lost").Array(cache.gold_lost);
  json.Key("binned_kl").Array(cache.kl);
  json.Key("binned_attention_kl").Array(cache.attention);
  json.Key("kl").Array(kl);
  json.Key("loss").Array(loss);
  json.Key("attention").BeginObject();
  json.Key("positions").Array(positions);
  json.Key("bytes").Array(bytes);
  json.Key("mean_kl").Array(attention);
  json.Key("block_kl").BeginArray();
  for (const AttentionSample& sample : cache.trace.attention) json.Array(sample.kl);
  json.EndArray().EndObject();
  json.EndObject();
}

// At most `count` columns out of many, each the mean of neighbours that are numbers.
std::vector<double> Coarse(const std::vector<double>& values, size_t count) {
  std::vector<double> coarse;
  for (size_t i = 0; i < count; ++i) {
    double sum = 0;
    int64_t used = 0;
    for (size_t j = values.size() * i / count; j < values.size() * (i + 1) / count; ++j) {
      if (!std::isfinite(values[j])) continue;
      sum += values[j];
      ++used;
    }
    coarse.push_back(used > 0 ? sum / static_cast<double>(used)
                              : std::numeric_limits<double>::quiet_NaN());
  }
  return coarse;
}

class Page {
 public:
  Page(const ErrorGrowth& growth, const KvGeometry& geometry, const Tokenizer* tokenizer,
       const PageOrigin& origin)
      : growth_(growth),
        geometry_(geometry),
        tokenizer_(tokenizer),
        columns_(std::min<size_t>(growth.bins.size(), 8)),
        page_("Error growth along one chain of thought", origin) {}

  HtmlPage Make() {
    page_.SetVerdict(ErrorGrowthVerdict(growth_, geometry_));
    AddIntroduction();
    AddSummary();
    AddKl();
    AddAttention();
    AddBlocks();
    AddDisagreements();
    AddBytes();
    return std::move(page_);
  }

 private:
  void AddIntroduction() {
    const Chain& chain = growth_.chain;
    page_.AddParagraph(
        "One chain is fed token by token through fp16 and through each other cache. At every "
        "position the tokens before it are the same for all, so what differs is what the cache did "
        "to them. KL is the distance from fp16's distribution to the cache's, in nats; 0 means "
        "equal, and 0 is not drawn on a logarithmic axis.");
    page_.AddFacts({{"problem", chain.problem},
                    {"chain", chain.origin},
                    {"tokens", fmt::format("{} of the prompt, {} of the chain", chain.prompt_tokens,
                                           chain.chain_tokens())},
                    {"budgets by width are for", fmt::format("{} tokens", growth_.max_len)},
                    {"attention compared", fmt::format("every {} tokens, all blocks and heads",
                                                       growth_.attention_stride)}});
  }

  std::string TokenText(int32_t id) const {
    if (tokenizer_ == nullptr || !tokenizer_->IsValid(id)) return std::to_string(id);
    std::string text;
    for (const char c : tokenizer_->TokenBytes(id)) {
      if (c == '\n') {
        text += "\\n";
      } else {
        text += c;
      }
    }
    return "\"" + text + "\"";
  }

  // "412: "7", fp16 "3"", counted from the start of the chain.
  std::string FirstDisagreement(const CacheGrowth& cache) const {
    if (cache.disagreements.empty()) return "none";
    const int64_t first = growth_.chain.prompt_tokens - 1;
    const int64_t position = cache.disagreements.front();
    const auto index = static_cast<size_t>(position - first);
    return fmt::format("{}: {}, fp16 {}", position + 1,
                       TokenText(cache.trace.predictions[index].top),
                       TokenText(growth_.unquantised[index].top));
  }

  // With its bits, since caches of other sizes are not to be compared.
  std::string Name(const CacheGrowth& cache) const {
    return fmt::format("{} ({:.2f} bits)", cache.spec, EffectiveBitsOf(growth_, cache, geometry_));
  }

  void AddSummary() {
    page_.AddHeading("Summary");
    page_.AddParagraph(
        "Growth: KL ~ position^exponent, fitted to the bin means that are not 0 (R2 says how well "
        "that describes them; a cache that steps down has stairs, not a power law; below 0.5 no "
        "exponent is given). Late / early: mean KL of the last quarter over that of the first, "
        "\"from 0\" where nothing was damaged in the first. Gold lost: the chain's next token is "
        "not the most likely one.");
    Table table;
    table.header = {"cache",     "mean KL",           "late / early",     "growth exponent",
                    "R2",        "attention KL",      "attention growth", "argmax differs",
                    "gold lost", "first at position", "peak bytes",       "effective bits"};
    for (const CacheGrowth& cache : growth_.caches) {
      const size_t num = std::max<size_t>(cache.trace.predictions.size(), 1);
      std::string name = cache.spec;
      if (cache.trace.spent_at >= 0) {
        name += fmt::format(" (budget spent at {})", cache.trace.spent_at);
      }
      table.rows.push_back({name, FormatNumber(cache.mean_kl), FormatLateOverEarly(cache),
                            FormatExponent(cache.kl_law), FormatNumber(cache.kl_law.r_squared),
                            FormatNumber(cache.mean_attention), FormatExponent(cache.attention_law),
                            fmt::format("{} ({:.2f} %)", cache.disagreements.size(),
                                        100.0 * static_cast<double>(cache.disagreements.size()) /
                                            static_cast<double>(num)),
                            std::to_string(cache.gold_lost.size()), FirstDisagreement(cache),
                            FormatByteSize(cache.trace.peak_bytes),
                            FormatNumber(EffectiveBitsOf(growth_, cache, geometry_))});
    }
    page_.AddTable(table);
  }

  // A chart of bin means and the same numbers, in fewer columns.
  void AddBinned(const std::string& title, const std::string& label,
                 const std::vector<double> CacheGrowth::*values) {
    Chart chart;
    chart.title = title;
    chart.x_label = "position in the sequence (tokens)";
    chart.y_label = label;
    chart.log_y = true;
    std::vector<std::string> names;
    std::vector<std::vector<double>> rows;
    for (const CacheGrowth& cache : growth_.caches) {
      chart.series.push_back({Name(cache), growth_.bins.Centres(), cache.*values});
      names.push_back(Name(cache));
      rows.push_back(Coarse(cache.*values, columns_));
    }
    page_.AddChart(chart);
    page_.AddTable({label + ", means", ColumnHeader("cache"), HeatRows(names, rows)});
  }

  std::vector<std::string> ColumnHeader(const std::string& first) const {
    std::vector<std::string> header = {first};
    for (size_t i = 0; i < columns_; ++i) {
      const size_t begin = growth_.bins.size() * i / columns_;
      const size_t end = growth_.bins.size() * (i + 1) / columns_;
      header.push_back(
          fmt::format("{} to {}", growth_.bins.edges[begin], growth_.bins.edges[end] - 1));
    }
    return header;
  }

  void AddKl() {
    page_.AddHeading("Next-token distributions");
    AddBinned("KL of the next-token distribution along the chain", "KL(fp16 || cache) (nats)",
              &CacheGrowth::kl);
  }

  void AddAttention() {
    page_.AddHeading("Attention distributions");
    page_.AddParagraph(
        "The same for the attention weights over all stored tokens, mean over blocks and heads. "
        "Keys are read as the cache holds them; queries are the cache's own, so errors of earlier "
        "blocks count, too.");
    AddBinned("KL of the attention distribution along the chain", "KL(fp16 || cache) (nats)",
              &CacheGrowth::attention);
  }

  void AddBlocks() {
    page_.AddHeading("Attention by block");
    Chart chart;
    chart.kind = Chart::Kind::kBar;
    chart.title = "KL of the attention distribution by block, mean over the chain";
    chart.x_label = "block";
    chart.y_label = "KL(fp16 || cache) (nats)";
    chart.log_y = true;
    for (int64_t layer = 0; layer < geometry_.num_layers(); ++layer) {
      chart.categories.push_back(std::to_string(layer));
    }
    for (const CacheGrowth& cache : growth_.caches) {
      std::vector<double> means;
      for (const std::vector<double>& block : cache.block_attention) {
        means.push_back(Coarse(block, 1).front());
      }
      chart.series.push_back({Name(cache), {}, means});
    }
    page_.AddChart(chart);
    for (const CacheGrowth& cache : growth_.caches) {
      std::vector<std::string> names;
      std::vector<std::vector<double>> rows;
      for (size_t layer = 0; layer < cache.block_attention.size(); ++layer) {
        names.push_back(fmt::format("block {}", layer));
        rows.push_back(Coarse(cache.block_attention[layer], columns_));
      }
      page_.AddTable({Name(cache) + ": attention KL (nats) by block and position",
                      ColumnHeader("block"), HeatRows(names, rows)});
    }
  }

  void AddDisagreements() {
    page_.AddHeading("Disagreements");
    page_.AddParagraph(
        "Positions at which the most likely next token is another one than fp16's, counted from "
        "the start. In free generation the first of them would send the chain another way.");
    Chart chart;
    chart.title = "Positions where the most likely token differs from fp16's, so far";
    chart.x_label = "position in the sequence (tokens)";
    chart.y_label = "positions (count)";
    chart.stepped = true;
    Table table{"Positions so far", ColumnHeader("cache"), {}};
    for (const CacheGrowth& cache : growth_.caches) {
      ChartSeries series{Name(cache), {}, {}};
      for (const int64_t edge : growth_.bins.edges) {
        series.x.push_back(static_cast<double>(edge));
        series.y.push_back(static_cast<double>(CountBefore(cache, edge)));
      }
      chart.series.push_back(series);
      table.rows.push_back({Name(cache)});
      for (size_t i = 0; i < columns_; ++i) {
        const size_t end = growth_.bins.size() * (i + 1) / columns_;
        table.rows.back().push_back(std::to_string(CountBefore(cache, growth_.bins.edges[end])));
      }
    }
    page_.AddChart(chart);
    page_.AddTable(table);
  }

  static int64_t CountBefore(const CacheGrowth& cache, int64_t position) {
    return std::lower_bound(cache.disagreements.begin(), cache.disagreements.end(), position) -
           cache.disagreements.begin();
  }

  void AddBytes() {
    page_.AddHeading("Cache size");
    page_.AddParagraph(
        "What each cache takes at the positions where attention was compared; a "
        "step down is a halving.");
    Chart chart;
    chart.title = "Size of the cache";
    chart.x_label = "position in the sequence (tokens)";
    chart.y_label = "bytes (MiB)";
    Table table{"MiB, means", ColumnHeader("cache"), {}};
    for (const CacheGrowth& cache : growth_.caches) {
      ChartSeries series{Name(cache), {}, {}};
      std::vector<int64_t> positions;
      for (const AttentionSample& sample : cache.trace.attention) {
        positions.push_back(sample.position);
        series.x.push_back(static_cast<double>(sample.position));
        series.y.push_back(static_cast<double>(sample.bytes) / (1 << 20));
      }
      table.rows.push_back({Name(cache)});
      for (const double mean : Coarse(BinMeans(growth_.bins, positions, series.y), columns_)) {
        table.rows.back().push_back(FormatNumber(mean));
      }
      chart.series.push_back(series);
    }
    page_.AddChart(chart);
    page_.AddTable(table);
  }

  const ErrorGrowth& growth_;
  const KvGeometry& geometry_;
  const Tokenizer* tokenizer_;
  size_t columns_;
  HtmlPage page_;
};

}  // namespace

double EffectiveBitsOf(const ErrorGrowth& growth, const CacheGrowth& cache,
                       const KvGeometry& geometry) {
  const int64_t num = std::max<int64_t>(std::ssize(cache.trace.predictions), 1);
  const auto stored = static_cast<double>(growth.chain.prompt_tokens - 1 + num);
  return static_cast<double>(cache.trace.peak_bytes) * 8 /
         (stored * static_cast<double>(geometry.values()));
}

std::string FormatLateOverEarly(const CacheGrowth& cache) {
  if (!std::isfinite(cache.late_over_early)) return "-";
  const double late = cache.late_over_early * cache.early_kl;
  if (cache.early_kl < kRoundingKl) return late < kRoundingKl ? "-" : "from 0";
  return FormatNumber(cache.late_over_early);
}

std::string FormatExponent(const PowerLaw& law) {
  return law.r_squared >= 0.5 ? FormatNumber(law.exponent) : "-";
}

std::string ErrorGrowthVerdict(const ErrorGrowth& growth, const KvGeometry& geometry) {
  std::vector<std::string> unharmed;
  std::vector<const CacheGrowth*> harmed;
  double least = std::numeric_limits<double>::infinity();
  double most = 0;
  for (const CacheGrowth& cache : growth.caches) {
    const double bits = EffectiveBitsOf(growth, cache, geometry);
    least = std::min(least, bits);
    most = std::max(most, bits);
    cache.disagreements.empty() ? unharmed.push_back(cache.spec) : harmed.push_back(&cache);
  }
  std::stable_sort(harmed.begin(), harmed.end(), [](const CacheGrowth* a, const CacheGrowth* b) {
    return a->disagreements.size() < b->disagreements.size();
  });
  std::string text;
  if (harmed.empty()) {
    text = fmt::format("No cache changed a token of the {} that fp16 chose.",
                       growth.chain.chain_tokens());
  } else {
    if (!unharmed.empty()) {
      text = fmt::format("{} changed no token of the {} that fp16 chose. ", ListOf(unharmed),
                         growth.chain.chain_tokens());
    }
    std::vector<std::string> parts;
    for (const CacheGrowth* cache : harmed) {
      const size_t num = cache->disagreements.size();
      parts.push_back(fmt::format("{} changed {} token{} (first at position {})", cache->spec, num,
                                  num == 1 ? "" : "s", cache->disagreements.front() + 1));
    }
    text += ListOf(parts) + ".";
  }
  if (growth.caches.size() > 1) {
    const std::string from = fmt::format("{:.2f}", least);
    const std::string to = fmt::format("{:.2f}", most);
    if (most > 1.15 * least) {
      text += fmt::format(" They do not take equal bytes: {} to {} bits per value.", from, to);
    } else if (from != to) {
      text += fmt::format(" All take about the same bytes: {} to {} bits per value.", from, to);
    } else {
      text += fmt::format(" All take the same bytes: {} bits per value.", from);
    }
  }
  return text;
}

std::string ErrorGrowthJson(const ErrorGrowth& growth, const std::string& command) {
  JsonWriter json(2);
  json.BeginObject();
  json.Key("analysis").String("error-growth");
  json.Key("command").String(command);
  json.Key("problem").String(growth.chain.problem);
  json.Key("chain").String(growth.chain.origin);
  json.Key("prompt_tokens").Int(growth.chain.prompt_tokens);
  json.Key("chain_tokens").Int(growth.chain.chain_tokens());
  json.Key("max_len").Int(growth.max_len);
  json.Key("first_position").Int(growth.chain.prompt_tokens - 1);
  json.Key("attention_stride").Int(growth.attention_stride);
  json.Key("bin_edges").Array(growth.bins.edges);
  json.Key("caches").BeginArray();
  for (const CacheGrowth& cache : growth.caches) WriteCache(json, cache);
  json.EndArray().EndObject();
  return json.text();
}

HtmlPage ErrorGrowthPage(const ErrorGrowth& growth, const KvGeometry& geometry,
                         const Tokenizer* tokenizer, const PageOrigin& origin) {
  return Page(growth, geometry, tokenizer, origin).Make();
}

}  // namespace pmkvq
