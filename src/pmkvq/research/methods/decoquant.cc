// DecoQuant (arXiv 2405.12591): a small factor at full precision, a large one in few bits.
//
// A block of R tokens of keys (after RoPE), or of values, all heads side by side, is read row by
// row as y [R C / J, J]. With the singular value decomposition y = U S V^T the large factor is
// U S^(1/2) and the small one S^(1/2) V^T [J, J]: a rotation and scaling of J neighbouring channels
// that all heads and tokens of the block share. The large factor, seen as [R, C] again, is
// quantised per token over all C channels, symmetrically: scale = max |.| / (2^(b - 1) - 1), at
// least 1e-5. Tokens that fill no block stay at full precision.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "pmkvq/base/error.h"
#include "pmkvq/kernels/linalg/eigen.h"
#include "pmkvq/research/methods/affine.h"
#include "pmkvq/research/methods/simulated_method.h"
#include "pmkvq/research/methods/stored_float.h"
#include "pmkvq/research/methods/windows.h"

namespace pmkvq {
namespace {

constexpr double kLeastScale = 1e-5f;
// Singular values below this share of the largest one are taken as 0: their columns of U are not
// determined, and add nothing.
constexpr double kLeastShare = 1e-6;

class DecoQuant final : public CacheMethod {
 public:
  DecoQuant(const MethodSpec& spec, const MethodContext& context) : context_(context) {
    bits_ = spec.Integer("bits", 4);
    columns_ = spec.Integer("columns", 16);
    window_.block = spec.Integer("residual", 128);
    if (context.geometry.kv_dim() % columns_ != 0) {
      throw InvalidInput("--kv", fmt::format("'{}': columns={}, expected a divisor of the {} "
                                             "channels of all KV heads",
                                             spec.text, columns_, context.geometry.kv_dim()));
    }
  }

  void OnAppend(int64_t, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState*) const override {
    const int64_t end = window_.QuantizedEnd(block.num_tokens());
    for (int64_t token = window_.QuantizedEnd(tokens.first); token < end; token += window_.block) {
      Damage(token, block, true);
      Damage(token, block, false);
    }
  }

  // Per block of R tokens and side: codes, a scale per token, the small factor.
  int64_t BlockBytes(int64_t, int64_t num_tokens) const override {
    const int64_t quantized = window_.NumQuantized(num_tokens);
    const int64_t code_bytes = (context_.geometry.kv_dim() * bits_ + 7) / 8;
    const auto float_bytes = static_cast<int64_t>(SizeOf(context_.float_type));
    return 2 * (quantized * (code_bytes + float_bytes) +
                quantized / window_.block * columns_ * columns_ * float_bytes +
                context_.FloatBytes(num_tokens - quantized));
  }
  ByteGrowth Growth(int64_t) const override { return GrowthOf(window_, window_); }

 private:
  // The factors of y for one block: y = large small.
  struct Factors {
    std::vector<double> to_large;  // [J, J]: large = y to_large.
    std::vector<float> small;      // [J, J], as stored.
  };

  Factors FactorsOf(const std::vector<float>& y) const {
    const auto width = static_cast<size_t>(columns_);
    std::vector<double> gram(width * width);
    for (size_t begin = 0; begin < y.size(); begin += width) {
      for (size_t i = 0; i < width; ++i) {
        for (size_t j = i; j < width; ++j) {
          gram[i * width + j] += double{y[begin + i]} * double{y[begin + j]};
        }
      }
    }
    const SymmetricEigen eigen = EigenOfSymmetric(gram.data(), columns_);
    Factors factors{std::vector<double>(gram.size()), std::vector<float>(gram.size())};
    const double largest = std::sqrt(std::max(eigen.values.back(), 0.0));
    for (size_t i = 0; i < width; ++i) {
      const size_t from = width - 1 - i;  // The largest singular value first.
      const double singular = std::sqrt(std::max(eigen.values[from], 0.0));
      if (singular <= kLeastShare * largest) continue;
      const double root = std::sqrt(singular);
      for (size_t j = 0; j < width; ++j) {
        const double entry = eigen.vectors[from * width + j];
        factors.to_large[j * width + i] = entry / root;
        factors.small[i * width + j] =
            StoredAs(context_.float_type, static_cast<float>(root * entry), "small factor");
      }
    }
    return factors;
  }

  void Damage(int64_t first, SimulatedBlock& block, bool keys) const {
    const int64_t dim = block.head_dim();
    const auto row = [&](int64_t t, int64_t head) {
      return keys ? block.Key(first + t, head) : block.Value(first + t, head);
    };
    std::vector<float> y;  // [R, C]
    for (int64_t t = 0; t < window_.block; ++t) {
      for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
        CheckFinite(row(t, head), dim);
        y.insert(y.end(), row(t, head), row(t, head) + dim);
      }
    }
    const Factors factors = FactorsOf(y);
    std::vector<double> large(static_cast<size_t>(context_.geometry.kv_dim()));
    for (int64_t t = 0; t < window_.block; ++t) {
      float* token = y.data() + t * context_.geometry.kv_dim();
      ToLarge(factors, token, large);
      Quantize(large);
      FromLarge(factors, large, token);
      for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
        std::copy_n(token + head * dim, dim, row(t, head));
      }
    }
  }

  void ToLarge(const Factors& factors, const float* token, std::vector<double>& large) const {
    const auto width = static_cast<size_t>(columns_);
    for (size_t begin = 0; begin < large.size(); begin += width) {
      for (size_t i = 0; i < width; ++i) {
        double sum = 0;
        for (size_t j = 0; j < width; ++j) {
          sum += double{token[begin + j]} * factors.to_large[j * width + i];
        }
        large[begin + i] = sum;
      }
    }
  }

  void Quantize(std::vector<double>& large) const {
    double most = 0;
    for (const double x : large) most = std::max(most, std::abs(x));
    const auto max_code = static_cast<double>((int64_t{1} << (bits_ - 1)) - 1);
    const double exact = std::max(most / max_code, kLeastScale);
    const float stored = StoredAs(context_.float_type, static_cast<float>(exact), "scale");
    // The stored scale decides which code is nearest. Rounding it to f32 would only move ties.
    const double scale = context_.float_type == DType::kF32 ? exact : double{stored};
    for (double& x : large) {
      x = std::clamp(std::nearbyint(x / scale), -max_code, max_code) * scale;
    }
  }

  void FromLarge(const Factors& factors, const std::vector<double>& large, float* token) const {
    const auto width = static_cast<size_t>(columns_);
    for (size_t begin = 0; begin < large.size(); begin += width) {
      for (size_t j = 0; j < width; ++j) {
        double sum = 0;
        for (size_t i = 0; i < width; ++i) {
          sum += large[begin + i] * double{factors.small[i * width + j]};
        }
        token[begin + j] = static_cast<float>(sum);
      }
    }
  }

  MethodContext context_;
  int64_t bits_ = 4;
  int64_t columns_ = 16;  // J
  TokenWindow window_;
};

}  // namespace

SimulatedMethod DecoQuantMethod() {
  return {"decoquant",
          "a small factor of each block of tokens at 16 bits, a large one in few bits",
          {ChoiceKey("bits", {"8", "4", "2"}, "4", "width of the large factor"),
           IntegerKey("columns", 1, 256, "16", "neighbouring channels that are turned together"),
           IntegerKey("residual", 1, 4096, "128", "tokens that are quantised together")},
          [](const MethodSpec& spec,
             const MethodContext& context) -> std::shared_ptr<const CacheMethod> {
            return std::make_shared<DecoQuant>(spec, context);
          }};
}

}  // namespace pmkvq
