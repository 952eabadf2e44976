// TurboQuant (arXiv 2504.19874, ICLR 2026): a random rotation and one codebook for all coordinates.
//
// A row (one token and KV head, of keys after RoPE or of values) keeps its norm; the unit vector is
// turned by a random rotation, so that each coordinate is distributed as that of a point of the
// sphere, and coded by the Lloyd-Max quantiser of that distribution. The rotation and the levels
// are the same for all rows and models; nothing is measured.
//
// With the word `qjl` one bit of a key's coordinates goes to the residual: the signs of a random
// projection of it, and its norm. Scores are then unbiased estimates.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>

#include "pmkvq/base/error.h"
#include "pmkvq/base/random.h"
#include "pmkvq/research/methods/affine.h"
#include "pmkvq/research/methods/simulated_method.h"
#include "pmkvq/research/methods/stored_float.h"
#include "pmkvq/research/methods/windows.h"

namespace pmkvq {
namespace {

constexpr uint64_t kRotationSeed = 2504;
constexpr uint64_t kProjectionSeed = 19874;

// [dim, dim] independent numbers of the normal distribution.
std::vector<double> Normals(int64_t dim, uint64_t seed) {
  Random random(seed);
  std::vector<double> normals;
  while (std::ssize(normals) < dim * dim) {
    const double radius = std::sqrt(-2 * std::log(1 - random.Uniform()));
    const double angle = 2 * std::numbers::pi * random.Uniform();
    normals.push_back(radius * std::cos(angle));
    normals.push_back(radius * std::sin(angle));
  }
  return normals;
}

// An orthogonal matrix, any with the same chance: normal rows, made orthogonal one after another.
std::vector<float> RandomRotation(int64_t dim, uint64_t seed) {
  std::vector<double> rows = Normals(dim, seed);
  for (int64_t i = 0; i < dim; ++i) {
    double* row = rows.data() + i * dim;
    for (int pass = 0; pass < 2; ++pass) {  // The second takes away what rounding left.
      for (int64_t j = 0; j < i; ++j) {
        const double* other = rows.data() + j * dim;
        double product = 0;
        for (int64_t c = 0; c < dim; ++c) product += row[c] * other[c];
        for (int64_t c = 0; c < dim; ++c) row[c] -= product * other[c];
      }
    }
    double squares = 0;
    for (int64_t c = 0; c < dim; ++c) squares += row[c] * row[c];
    for (int64_t c = 0; c < dim; ++c) row[c] /= std::sqrt(squares);
  }
  return {rows.begin(), rows.begin() + dim * dim};
}

// Lloyd-Max levels, ascending, of one coordinate of a point of the unit sphere in `dim` dimensions:
// density in proportion to (1 - x^2)^((dim - 3) / 2). On a grid of that density.
std::vector<float> SphereLevels(int64_t dim, int64_t bits) {
  constexpr int64_t kCells = 40000;
  constexpr int kMaxRounds = 3000;
  const auto count = static_cast<size_t>(int64_t{1} << bits);
  std::vector<double> mass(kCells + 1);    // Of the cells in front.
  std::vector<double> moment(kCells + 1);  // Likewise, of x.
  const double power = static_cast<double>(dim - 3) / 2;
  for (int64_t i = 0; i < kCells; ++i) {
    const double x = (static_cast<double>(i) + 0.5) * 2 / kCells - 1;
    const double density = std::pow(1 - x * x, power);
    mass[static_cast<size_t>(i + 1)] = mass[static_cast<size_t>(i)] + density;
    moment[static_cast<size_t>(i + 1)] = moment[static_cast<size_t>(i)] + density * x;
  }
  const auto cell_of = [&](double x) {
    return static_cast<size_t>(std::clamp((x + 1) * kCells / 2, 0.0, double{kCells}));
  };
  std::vector<double> levels;
  for (size_t i = 0; i < count; ++i) {  // Places of equal mass.
    const double share = (static_cast<double>(i) + 0.5) / static_cast<double>(count);
    const auto at = std::lower_bound(mass.begin(), mass.end(), share * mass.back());
    levels.push_back(static_cast<double>(at - mass.begin()) * 2 / kCells - 1);
  }
  for (int round = 0; round < kMaxRounds; ++round) {
    double moved = 0;
    size_t begin = 0;
    std::vector<double> next = levels;
    for (size_t i = 0; i < count; ++i) {
      const size_t end = i + 1 < count ? cell_of((levels[i] + levels[i + 1]) / 2) : kCells;
      const double weight = mass[end] - mass[begin];
      if (weight > 0) next[i] = (moment[end] - moment[begin]) / weight;
      moved = std::max(moved, std::abs(next[i] - levels[i]));
      begin = end;
    }
    levels = next;
    if (moved < 1e-9) break;
  }
  return {levels.begin(), levels.end()};
}

class TurboQuant final : public CacheMethod {
 public:
  TurboQuant(const MethodSpec& spec, const MethodContext& context)
      : context_(context), dim_(context.geometry.head_dim) {
    key_bits_ = spec.Integer("k", 4);
    value_bits_ = spec.Integer("v", 4);
    qjl_ = spec.words.contains("qjl");
    window_.recent = spec.Integer("recent", 0);
    const int64_t level_bits = key_bits_ - (qjl_ ? 1 : 0);
    if (level_bits == 0) {
      throw InvalidInput("--kv", fmt::format("'{}': k=1, expected 2 or more with qjl, which takes "
                                             "one",
                                             spec.text));
    }
    key_levels_ = SphereLevels(dim_, level_bits);
    value_levels_ = SphereLevels(dim_, value_bits_);
    rotation_ = RandomRotation(dim_, kRotationSeed);
    if (!qjl_) return;
    const std::vector<double> normals = Normals(dim_, kProjectionSeed);
    projection_.assign(normals.begin(), normals.begin() + dim_ * dim_);
  }

  void OnAppend(int64_t, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState*) const override {
    const int64_t end = window_.QuantizedEnd(block.num_tokens());
    for (int64_t token = window_.QuantizedEnd(tokens.first); token < end; ++token) {
      for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
        Damage(key_levels_, qjl_, block.Key(token, head));
        Damage(value_levels_, false, block.Value(token, head));
      }
    }
  }

  // Per row: codes and the norm, and with qjl that of the residual. Rotation, projection and levels
  // follow from D.
  int64_t BlockBytes(int64_t, int64_t num_tokens) const override {
    const int64_t quantized = window_.NumQuantized(num_tokens);
    const auto float_bytes = static_cast<int64_t>(SizeOf(context_.float_type));
    const int64_t row_bytes =
        (dim_ * key_bits_ + 7) / 8 + (dim_ * value_bits_ + 7) / 8 + (qjl_ ? 3 : 2) * float_bytes;
    return quantized * context_.geometry.num_kv_heads * row_bytes +
           2 * context_.FloatBytes(num_tokens - quantized);
  }
  ByteGrowth Growth(int64_t) const override { return GrowthOf(window_, window_); }

 private:
  // y = M x, or M^T x; M [D, D].
  std::vector<float> Times(const std::vector<float>& matrix, const std::vector<float>& x) const {
    std::vector<float> y;
    const float* row = matrix.data();
    for (int64_t i = 0; i < dim_; ++i, row += dim_) {
      double sum = 0;
      for (int64_t j = 0; j < dim_; ++j) {
        sum += double{row[j]} * double{x[static_cast<size_t>(j)]};
      }
      y.push_back(static_cast<float>(sum));
    }
    return y;
  }
  std::vector<float> TransposedTimes(const std::vector<float>& matrix,
                                     const std::vector<float>& x) const {
    std::vector<double> sums(static_cast<size_t>(dim_));
    const float* row = matrix.data();
    for (int64_t i = 0; i < dim_; ++i, row += dim_) {
      const double factor = double{x[static_cast<size_t>(i)]};
      for (int64_t j = 0; j < dim_; ++j) sums[static_cast<size_t>(j)] += factor * double{row[j]};
    }
    return {sums.begin(), sums.end()};
  }
  static double Norm(const std::vector<float>& x) {
    double squares = 0;
    for (const float value : x) squares += double{value} * double{value};
    return std::sqrt(squares);
  }

  static float NearestLevel(const std::vector<float>& levels, float x) {
    const auto above = std::lower_bound(levels.begin(), levels.end(), x);
    if (above == levels.begin()) return levels.front();
    if (above == levels.end()) return levels.back();
    return x - *(above - 1) <= *above - x ? *(above - 1) : *above;
  }

  void Damage(const std::vector<float>& levels, bool qjl, float* row) const {
    CheckFinite(row, dim_);
    std::vector<float> x(row, row + dim_);
    const double norm = Norm(x);
    const float stored_norm = StoredAs(context_.float_type, static_cast<float>(norm), "norm");
    if (stored_norm == 0.0f) {
      std::fill_n(row, dim_, 0.0f);
      return;
    }
    for (float& value : x) value = static_cast<float>(double{value} / norm);
    const std::vector<float> rotated = Times(rotation_, x);
    std::vector<float> read = rotated;
    for (float& value : read) value = NearestLevel(levels, value);
    if (qjl) AddResidual(rotated, read);
    x = TransposedTimes(rotation_, read);
    for (int64_t i = 0; i < dim_; ++i) row[i] = x[static_cast<size_t>(i)] * stored_norm;
  }

  // read += sqrt(pi / 2) / D * |r| * S^T sign(S r), r = rotated - read: whose product with any
  // vector has the right mean over S.
  void AddResidual(const std::vector<float>& rotated, std::vector<float>& read) const {
    std::vector<float> residual = rotated;
    for (size_t i = 0; i < read.size(); ++i) residual[i] -= read[i];
    const auto norm =
        double{StoredAs(context_.float_type, static_cast<float>(Norm(residual)), "norm")};
    std::vector<float> signs = Times(projection_, residual);
    for (float& sign : signs) sign = sign < 0 ? -1.0f : 1.0f;
    const std::vector<float> sums = TransposedTimes(projection_, signs);
    const double factor = std::sqrt(std::numbers::pi / 2) / static_cast<double>(dim_) * norm;
    for (size_t i = 0; i < read.size(); ++i) {
      read[i] += static_cast<float>(factor * double{sums[i]});
    }
  }

  MethodContext context_;
  int64_t dim_;
  int64_t key_bits_ = 4;
  int64_t value_bits_ = 4;
  bool qjl_ = false;
  TokenWindow window_;
  std::vector<float> key_levels_;
  std::vector<float> value_levels_;
  std::vector<float> rotation_;    // [D, D]
  std::vector<float> projection_;  // [D, D], with qjl.
};

}  // namespace

SimulatedMethod TurboQuantMethod() {
  return {"turboquant",
          "a random rotation and one codebook for all coordinates, per token",
          {IntegerKey("k", 1, 8, "4", "bits of a key's coordinate"),
           IntegerKey("v", 1, 8, "4", "bits of a value's coordinate"),
           WordKey("qjl", "one bit of keys for the signs of their residual"),
           IntegerKey("recent", 0, 4096, "0", "newest tokens at full precision")},
          [](const MethodSpec& spec,
             const MethodContext& context) -> std::shared_ptr<const CacheMethod> {
            return std::make_shared<TurboQuant>(spec, context);
          }};
}

}  // namespace pmkvq
