// KVarN (arXiv 2606.03458): tiles whose rows and columns are scaled to one variance.
//
// A tile is 128 tokens of one KV head, of keys (after RoPE) or values. Each row is turned by a
// Walsh-Hadamard transform; then rows (tokens) and columns (channels) are divided by their standard
// deviations in turn, several times, as Sinkhorn's iteration does with sums. The quotients are
// quantised per row, asymmetrically. Stored are codes, minimum, range and scale of each row, and
// the scale of each column. The newest tokens stay at full precision: a tail, and the tile that is
// not full.
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

constexpr int64_t kTileTokens = 128;

class KvarN final : public CacheMethod {
 public:
  KvarN(const MethodSpec& spec, const MethodContext& context) : context_(context) {
    const int64_t dim = context.geometry.head_dim;
    if (!std::has_single_bit(static_cast<uint64_t>(dim))) {
      throw InvalidInput("--kv",
                         fmt::format("'{}': head_dim {}, expected a power of two", spec.text, dim));
    }
    keys_ = {static_cast<int>(spec.Integer("k", 2)), context.float_type};
    values_ = {static_cast<int>(spec.Integer("v", 2)), context.float_type};
    rounds_ = spec.Integer("rounds", 4);
    window_.recent = spec.Integer("tail", 0);
    window_.block = kTileTokens;
  }

  void OnAppend(int64_t, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState*) const override {
    const int64_t end = window_.QuantizedEnd(block.num_tokens());
    for (int64_t token = window_.QuantizedEnd(tokens.first); token < end; token += kTileTokens) {
      for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
        // Tiles are pages: their rows lie one behind the other.
        DamageTile(keys_, block.head_dim(), block.Key(token, head, kTileTokens));
        DamageTile(values_, block.head_dim(), block.Value(token, head, kTileTokens));
      }
    }
  }

  int64_t BlockBytes(int64_t, int64_t num_tokens) const override {
    const int64_t quantized = window_.NumQuantized(num_tokens);
    const auto float_bytes = static_cast<int64_t>(SizeOf(context_.float_type));
    const int64_t heads = context_.geometry.num_kv_heads;
    const int64_t row_scales = quantized * heads * float_bytes;
    const int64_t column_scales =
        quantized / kTileTokens * context_.geometry.kv_dim() * float_bytes;
    const int64_t dim = context_.geometry.head_dim;  // One group a row.
    return AffineBytes(keys_, quantized * heads * dim, dim) +
           AffineBytes(values_, quantized * heads * dim, dim) +
           2 * (row_scales + column_scales + context_.FloatBytes(num_tokens - quantized));
  }
  ByteGrowth Growth(int64_t) const override { return GrowthOf(window_, window_); }

 private:
  // Rows and columns of a tile are divided by these.
  struct Scales {
    std::vector<double> rows;
    std::vector<double> columns;
  };

  // The standard deviation of count values, `stride` apart, around their mean; 1 where it is 0.
  template <class At>
  static double Deviation(int64_t count, const At& at) {
    double sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += at(i);
    const double mean = sum / static_cast<double>(count);
    double squares = 0;
    for (int64_t i = 0; i < count; ++i) squares += (at(i) - mean) * (at(i) - mean);
    const double deviation = std::sqrt(squares / static_cast<double>(count));
    return deviation > 0 ? deviation : 1;
  }

  Scales ScalesOf(int64_t dim, const float* tile) const {
    Scales scales{std::vector<double>(kTileTokens, 1.0),
                  std::vector<double>(static_cast<size_t>(dim), 1.0)};
    const auto scaled = [&](int64_t row, int64_t column) {
      return double{tile[row * dim + column]} /
             (scales.rows[static_cast<size_t>(row)] * scales.columns[static_cast<size_t>(column)]);
    };
    for (int64_t round = 0; round < rounds_; ++round) {
      for (int64_t row = 0; row < kTileTokens; ++row) {
        scales.rows[static_cast<size_t>(row)] *=
            Deviation(dim, [&](int64_t i) { return scaled(row, i); });
      }
      for (int64_t column = 0; column < dim; ++column) {
        scales.columns[static_cast<size_t>(column)] *=
            Deviation(kTileTokens, [&](int64_t i) { return scaled(i, column); });
      }
    }
    // A factor that all columns have belongs to the rows: columns get a geometric mean of 1.
    double logs = 0;
    for (const double scale : scales.columns) logs += std::log(scale);
    const double common = std::exp(logs / static_cast<double>(dim));
    for (double& scale : scales.columns) scale /= common;
    for (double& scale : scales.rows) scale *= common;
    return scales;
  }

  // As it is stored; 1 where it is too small for the type.
  float StoredScale(double scale) const {
    const float stored = StoredAs(context_.float_type, static_cast<float>(scale), "scale");
    return stored > 0 ? stored : 1;
  }

  // tile [kTileTokens, D]
  void DamageTile(const AffineFormat& format, int64_t dim, float* tile) const {
    HadamardHeads(tile, kTileTokens * dim, dim);
    CheckFinite(tile, kTileTokens * dim);
    const Scales scales = ScalesOf(dim, tile);
    std::vector<float> columns;
    for (const double scale : scales.columns) columns.push_back(StoredScale(scale));
    for (int64_t row = 0; row < kTileTokens; ++row) {
      float* x = tile + row * dim;
      const float scale = StoredScale(scales.rows[static_cast<size_t>(row)]);
      for (int64_t i = 0; i < dim; ++i) x[i] /= scale * columns[static_cast<size_t>(i)];
      DamageGroup(format, dim, 1, x);
      for (int64_t i = 0; i < dim; ++i) x[i] *= scale * columns[static_cast<size_t>(i)];
    }
    HadamardHeads(tile, kTileTokens * dim, dim);
    CheckFinite(tile, kTileTokens * dim);
  }

  MethodContext context_;
  AffineFormat keys_;
  AffineFormat values_;
  int64_t rounds_ = 4;
  TokenWindow window_;
};

}  // namespace

SimulatedMethod KvarNMethod() {
  const std::vector<std::string> widths = {"8", "6", "5", "4", "3", "2"};
  return {
      "kvarn",
      "rotated tiles of 128 tokens, scaled by token and channel",
      {ChoiceKey("k", widths, "2", "width of keys"), ChoiceKey("v", widths, "2", "width of values"),
       IntegerKey("rounds", 1, 100, "4", "times that rows and columns are scaled"),
       IntegerKey("tail", 0, 4096, "0", "newest tokens at full precision")},
      [](const MethodSpec& spec, const MethodContext& context)
          -> std::shared_ptr<const CacheMethod> { return std::make_shared<KvarN>(spec, context); }};
}

}  // namespace pmkvq
