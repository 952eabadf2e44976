#include "pmkvq/research/calib/samples.h"

#include <fmt/format.h>

#include <cstddef>
#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/random.h"
#include "pmkvq/io/dataset.h"

namespace pmkvq {
namespace {

constexpr const char* kWhere = "calibration data";

void CheckOptions(const SampleOptions& options) {
  if (options.num_samples < 1) {
    throw InvalidInput(
        kWhere, fmt::format("n-samples: found {}, expected at least 1", options.num_samples));
  }
  if (options.seq_len < 2) {
    throw InvalidInput(kWhere,
                       fmt::format("seq-len: found {}, expected at least 2", options.seq_len));
  }
  if (options.effective_len < 0 || options.effective_len % options.seq_len != 0) {
    throw InvalidInput(kWhere, fmt::format("effective-len: found {}, expected a multiple of "
                                           "seq-len {}",
                                           options.effective_len, options.seq_len));
  }
}

// Draws from one data set; fills `samples`.
class Drawing {
 public:
  Drawing(const SampleOptions& options, const ModelConfig& config, const Tokenizer* tokenizer)
      : options_(options), config_(config), tokenizer_(tokenizer) {
    rows_ = LoadTextRows(options.dataset);
    samples_.seq_len = options.seq_len;
  }

  Samples Run() {
    AddRowsWithIds();
    const std::vector<size_t> order = ShuffledTexts();
    if (!order.empty() && !Full() && tokenizer_ == nullptr) {
      throw InvalidInput(options_.dataset,
                         "a row has text but the model folder has no tokenizer.json, expected "
                         "rows with input_ids");
    }
    for (const size_t row : order) {
      if (Full()) break;
      if (options_.packing == Packing::kConcat) {
        AddConcatenated(Tokenize(row));
      } else {
        AddSingle(Tokenize(row));
      }
    }
    return std::move(samples_);
  }

  int64_t num_skipped() const { return num_skipped_; }

 private:
  bool Full() const { return static_cast<int64_t>(samples_.tokens.size()) >= options_.num_samples; }
  size_t SeqLen() const { return static_cast<size_t>(options_.seq_len); }

  void CheckIds(const std::vector<int32_t>& ids, size_t row) const {
    for (const int32_t id : ids) {
      if (id < 0 || id >= config_.vocab_size) {
        throw InvalidInput(options_.dataset,
                           fmt::format("row {}: found token id {}, expected 0 to {}", row + 1, id,
                                       config_.vocab_size - 1));
      }
    }
  }

  void AddRowsWithIds() {
    for (size_t row = 0; row < rows_.size() && !Full(); ++row) {
      std::vector<int32_t>& ids = rows_[row].input_ids;
      if (ids.empty()) continue;
      CheckIds(ids, row);
      if (ids.size() > SeqLen()) ids.resize(SeqLen());
      if (ids.size() < 2) {
        ++num_skipped_;
        continue;
      }
      samples_.tokens.push_back(std::move(ids));
    }
  }

  // Row numbers of the texts, Fisher-Yates from the end.
  std::vector<size_t> ShuffledTexts() const {
    std::vector<size_t> order;
    for (size_t row = 0; row < rows_.size(); ++row) {
      if (!rows_[row].text.empty()) order.push_back(row);
    }
    Random random(options_.seed);
    for (size_t i = order.size(); i > 1; --i) {
      std::swap(order[i - 1], order[static_cast<size_t>(random.Below(i))]);
    }
    return order;
  }

  std::vector<int32_t> Tokenize(size_t row) const {
    std::vector<int32_t> ids = tokenizer_->EncodeWhole(rows_[row].text, /*parse_special=*/true);
    CheckIds(ids, row);
    return ids;
  }

  void AddConcatenated(const std::vector<int32_t>& ids) {
    stream_.insert(stream_.end(), ids.begin(), ids.end());
    size_t begin = 0;
    for (; stream_.size() - begin >= SeqLen() && !Full(); begin += SeqLen()) {
      const auto first = stream_.begin() + static_cast<std::ptrdiff_t>(begin);
      samples_.tokens.emplace_back(first, first + static_cast<std::ptrdiff_t>(SeqLen()));
    }
    stream_.erase(stream_.begin(), stream_.begin() + static_cast<std::ptrdiff_t>(begin));
  }

  void AddSingle(std::vector<int32_t> ids) {
    if (ids.size() < SeqLen()) {
      ++num_skipped_;
      return;
    }
    ids.resize(SeqLen());
    samples_.tokens.push_back(std::move(ids));
  }

  const SampleOptions& options_;
  const ModelConfig& config_;
  const Tokenizer* tokenizer_;
  std::vector<TextRow> rows_;
  std::vector<int32_t> stream_;  // Concatenated texts that no sample has taken yet.
  int64_t num_skipped_ = 0;
  Samples samples_;
};

void WarnAbout(const SampleOptions& options, const ModelConfig& config, int64_t num_samples,
               int64_t num_skipped, LogSink* log) {
  if (log == nullptr) return;
  if (num_samples < options.num_samples) {
    const std::string skipped =
        num_skipped > 0 ? fmt::format(" ({} rows were too short)", num_skipped) : "";
    log->Warning(fmt::format("{}: only {} samples of {} tokens where {} were asked for{}",
                             options.dataset, num_samples, options.seq_len, options.num_samples,
                             skipped));
  }
  const int64_t effective_len =
      options.effective_len == 0 ? options.seq_len : options.effective_len;
  if (effective_len > config.max_position_embeddings) {
    log->Warning(fmt::format("effective length {} is beyond the model's {} positions",
                             effective_len, config.max_position_embeddings));
  }
}

}  // namespace

Packing ParsePacking(std::string_view name) {
  if (name == NameOf(Packing::kConcat)) return Packing::kConcat;
  if (name == NameOf(Packing::kSingle)) return Packing::kSingle;
  throw InvalidInput(kWhere, fmt::format("pack: found \"{}\", expected concat or single", name));
}

std::string_view NameOf(Packing packing) {
  return packing == Packing::kConcat ? "concat" : "single";
}

std::vector<int64_t> Samples::Positions(size_t index, int64_t effective_len) const {
  PMKVQ_CHECK(index < tokens.size());
  const auto length = static_cast<int64_t>(tokens[index].size());
  const int64_t base = seq_len == 0 ? length : seq_len;
  const int64_t total = effective_len == 0 ? base : effective_len;
  PMKVQ_CHECK_MSG(base > 0 && total % base == 0, "effective_len is no multiple of seq_len");
  const int64_t stride = total / base;
  std::vector<int64_t> positions(tokens[index].size());
  for (size_t t = 0; t < positions.size(); ++t) positions[t] = static_cast<int64_t>(t) * stride;
  return positions;
}

Samples DrawSamples(const SampleOptions& options, const ModelConfig& config,
                    const Tokenizer* tokenizer, LogSink* log) {
  CheckOptions(options);
  Drawing drawing(options, config, tokenizer);
  Samples samples = drawing.Run();
  if (samples.tokens.empty()) {
    throw InvalidInput(options.dataset, fmt::format("no sample of {} tokens, expected at least one "
                                                    "(pack {}, {} rows too short)",
                                                    options.seq_len, NameOf(options.packing),
                                                    drawing.num_skipped()));
  }
  WarnAbout(options, config, static_cast<int64_t>(samples.tokens.size()), drawing.num_skipped(),
            log);
  return samples;
}

}  // namespace pmkvq
