// KVarN (arXiv 2606.03458): tiles whose rows and columns are brought to one variance.
//
// A tile is 128 (or 64) tokens of one KV head. Its vectors are turned by a Walsh-Hadamard
// transform. A tile of keys (after RoPE) has channels as rows and tokens as columns, one of values
// tokens as rows and channels as columns. Columns and rows are divided by their standard deviations
// in turn, as Sinkhorn's iteration does with sums; of all rounds the one counts after which the
// deviations are nearest to each other. Then each row is quantised with minimum and range.
//
// Scales of rows are part of minimum and range: quantisation of a row does not depend on a factor.
// So a tile stores codes, minimum and range of each row, and a scale of each column. The first
// tokens and the tile that is not full stay at full precision.
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "pmkvq/base/error.h"
#include "pmkvq/kernels/linalg/hadamard.h"
#include "pmkvq/research/methods/affine.h"
#include "pmkvq/research/methods/simulated_method.h"
#include "pmkvq/research/methods/stored_float.h"
#include "pmkvq/research/methods/windows.h"

namespace pmkvq {
namespace {

// Bounds of the authors' code: of a deviation in one round, and of the logarithm of a scale.
constexpr double kLeastDeviation = 1e-3;
constexpr double kMostDeviation = 1e3;
constexpr double kLeastLogScale = -0.3;
constexpr double kMostLogScale = 10;

// [rows, columns]
struct Tile {
  int64_t rows = 0;
  int64_t columns = 0;
  std::vector<float> values;
};

// Scales of a tile by rounds of normalisation.
class Balance {
 public:
  explicit Balance(const Tile& tile)
      : tile_(tile),
        row_logs_(static_cast<size_t>(tile.rows)),
        column_logs_(static_cast<size_t>(tile.columns)),
        row_factors_(row_logs_.size(), 1.0),
        column_factors_(column_logs_.size(), 1.0) {}

  // Scales of the columns, after the best of `rounds` rounds or before the first.
  std::vector<double> ColumnScales(int64_t rounds) {
    std::vector<double> best(column_logs_.size(), 1.0);
    double least = Imbalance();
    for (int64_t round = 0; round < rounds; ++round) {
      Normalise(false, column_logs_, column_factors_);
      Normalise(true, row_logs_, row_factors_);
      const double imbalance = Imbalance();
      if (imbalance > least) continue;
      least = imbalance;
      for (size_t i = 0; i < best.size(); ++i) best[i] = std::exp(column_logs_[i]);
    }
    return best;
  }

 private:
  double At(int64_t row, int64_t column) const {
    return double{tile_.values[static_cast<size_t>(row * tile_.columns + column)]} *
           row_factors_[static_cast<size_t>(row)] * column_factors_[static_cast<size_t>(column)];
  }

  // Of n - 1 degrees of freedom, of every row or every column.
  std::vector<double> Deviations(bool of_rows) const {
    std::vector<double> deviations;
    const int64_t count = of_rows ? tile_.columns : tile_.rows;
    for (int64_t i = 0; i < (of_rows ? tile_.rows : tile_.columns); ++i) {
      double sum = 0;
      double squares = 0;
      for (int64_t j = 0; j < count; ++j) sum += of_rows ? At(i, j) : At(j, i);
      const double mean = sum / static_cast<double>(count);
      for (int64_t j = 0; j < count; ++j) {
        const double difference = (of_rows ? At(i, j) : At(j, i)) - mean;
        squares += difference * difference;
      }
      deviations.push_back(std::sqrt(squares / static_cast<double>(count - 1)));
    }
    return deviations;
  }

  void Normalise(bool of_rows, std::vector<double>& logs, std::vector<double>& factors) const {
    const std::vector<double> deviations = Deviations(of_rows);
    for (size_t i = 0; i < logs.size(); ++i) {
      const double deviation = std::clamp(deviations[i], kLeastDeviation, kMostDeviation);
      logs[i] = std::clamp(logs[i] + std::log(deviation), kLeastLogScale, kMostLogScale);
      factors[i] = std::exp(-logs[i]);
    }
  }

  // The largest deviation of a column by the smallest, and the same of rows: 2 where all are alike.
  double Imbalance() const {
    double sum = 0;
    for (const bool of_rows : {false, true}) {
      const std::vector<double> deviations = Deviations(of_rows);
      const auto [least, most] = std::minmax_element(deviations.begin(), deviations.end());
      sum += *most / std::max(*least, 1e-8);
    }
    return sum;
  }

  const Tile& tile_;
  std::vector<double> row_logs_;
  std::vector<double> column_logs_;
  std::vector<double> row_factors_;  // exp(-log)
  std::vector<double> column_factors_;
};

class KvarN final : public CacheMethod {
 public:
  KvarN(const MethodSpec& spec, const MethodContext& context) : context_(context) {
    const int64_t dim = context.geometry.head_dim;
    if (!std::has_single_bit(static_cast<uint64_t>(dim))) {
      throw InvalidInput("--kv",
                         fmt::format("'{}': head_dim {}, expected a power of two", spec.text, dim));
    }
    keys_ = {static_cast<int>(spec.Integer("k", 4)), context.float_type};
    values_ = {static_cast<int>(spec.Integer("v", 2)), context.float_type};
    rounds_ = spec.Integer("rounds", 16);
    window_.sink = spec.Integer("sink", 128);
    window_.block = spec.Integer("tile", 128);
  }

  void OnAppend(int64_t, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState*) const override {
    const int64_t end = window_.QuantizedEnd(block.num_tokens());
    for (int64_t token = window_.QuantizedEnd(tokens.first); token < end; token += window_.block) {
      for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
        DamageTile(token, head, true, block);
        DamageTile(token, head, false, block);
      }
    }
  }

  int64_t BlockBytes(int64_t, int64_t num_tokens) const override {
    const int64_t quantized = window_.NumQuantized(num_tokens);
    const int64_t tiles = quantized / window_.block * context_.geometry.num_kv_heads;
    const int64_t dim = context_.geometry.head_dim;
    const auto float_bytes = static_cast<int64_t>(SizeOf(context_.float_type));
    const int64_t values = window_.block * dim;  // Of a tile.
    return tiles * (AffineBytes(keys_, values, window_.block) + window_.block * float_bytes +
                    AffineBytes(values_, values, dim) + dim * float_bytes) +
           2 * context_.FloatBytes(num_tokens - quantized);
  }
  ByteGrowth Growth(int64_t) const override { return GrowthOf(window_, window_); }

 private:
  void DamageTile(int64_t first, int64_t head, bool keys, SimulatedBlock& block) const {
    const int64_t dim = block.head_dim();
    const int64_t count = window_.block;
    const auto row = [&](int64_t t) {
      return keys ? block.Key(first + t, head) : block.Value(first + t, head);
    };
    Tile tile{keys ? dim : count, keys ? count : dim,
              std::vector<float>(static_cast<size_t>(count * dim))};
    const auto at = [&](int64_t t, int64_t channel) -> float& {
      return tile.values[static_cast<size_t>(keys ? channel * count + t : t * dim + channel)];
    };
    std::vector<float> rotated(static_cast<size_t>(dim));
    for (int64_t t = 0; t < count; ++t) {
      std::copy_n(row(t), dim, rotated.begin());
      Hadamard(rotated.data(), dim);
      CheckFinite(rotated.data(), dim);
      for (int64_t i = 0; i < dim; ++i) at(t, i) = rotated[static_cast<size_t>(i)];
    }
    DamageRows(keys ? keys_ : values_, tile);
    for (int64_t t = 0; t < count; ++t) {
      for (int64_t i = 0; i < dim; ++i) rotated[static_cast<size_t>(i)] = at(t, i);
      Hadamard(rotated.data(), dim);
      std::copy_n(rotated.begin(), dim, row(t));
    }
  }

  void DamageRows(const AffineFormat& format, Tile& tile) const {
    std::vector<float> scales;
    for (const double scale : Balance(tile).ColumnScales(rounds_)) {
      scales.push_back(StoredAs(context_.float_type, static_cast<float>(scale), "scale"));
    }
    for (int64_t row = 0; row < tile.rows; ++row) {
      float* x = tile.values.data() + row * tile.columns;
      for (size_t i = 0; i < scales.size(); ++i) x[i] /= scales[i];
      DamageGroup(format, tile.columns, 1, x);
      for (size_t i = 0; i < scales.size(); ++i) x[i] *= scales[i];
    }
  }

  MethodContext context_;
  AffineFormat keys_;
  AffineFormat values_;
  int64_t rounds_ = 16;
  TokenWindow window_;
};

}  // namespace

SimulatedMethod KvarNMethod() {
  const std::vector<std::string> widths = {"8", "6", "5", "4", "3", "2"};
  return {
      "kvarn",
      "rotated tiles of one variance, keys per channel and values per token",
      {ChoiceKey("k", widths, "4", "width of keys"), ChoiceKey("v", widths, "2", "width of values"),
       ChoiceKey("tile", {"128", "64"}, "128", "tokens that are quantised together"),
       IntegerKey("rounds", 0, 100, "16", "times that columns and rows are scaled"),
       IntegerKey("sink", 0, 4096, "128", "first tokens at full precision")},
      [](const MethodSpec& spec, const MethodContext& context)
          -> std::shared_ptr<const CacheMethod> { return std::make_shared<KvarN>(spec, context); }};
}

}  // namespace pmkvq
