// OSCAR (arXiv 2605.17757): rotations that put the quantisation error where attention looks least.
//
// Per block and KV head, keys after RoPE and values are rotated: x R, R = U H P. U are the
// eigenvectors (ascending) of a covariance that attention weighs, H is the Walsh-Hadamard matrix,
// P puts the column of the i-th largest eigenvalue at the bit-reversed place of i:
//   keys:   Q^T Q, over the queries after RoPE of the heads that share the KV head;
//   values: sum over tokens t of w_t v_t^T v_t, w_t = k_t (Q^T Q) k_t^T, the sum of the squared
//           scores of all queries with the token.
// A rotated row is clipped to the clip-quantile of its magnitudes and quantised in groups of
// min(128, D). The first `sink` and the newest `recent` tokens stay at full precision. The rotation
// is undone when the row is stored, which is the same as undoing it at every read.
//
// The word `hadamard` rotates by H alone and needs no calibration.
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <span>

#include "pmkvq/base/error.h"
#include "pmkvq/kernels/gemm/gemm.h"
#include "pmkvq/kernels/linalg/eigen.h"
#include "pmkvq/kernels/linalg/hadamard.h"
#include "pmkvq/model/profile.h"
#include "pmkvq/research/calib/sample_loop.h"
#include "pmkvq/research/methods/affine.h"
#include "pmkvq/research/methods/simulated_method.h"
#include "pmkvq/research/methods/windows.h"

namespace pmkvq {
namespace {

constexpr char kKeyRotation[] = "k_rotation";    // Per block [Hkv, D, D].
constexpr char kValueRotation[] = "v_rotation";  // Likewise.
// Of R R^T from the unit matrix: rounding to float leaves 1e-6.
constexpr float kOrthogonality = 1e-3f;

void CheckSpec(const MethodSpec& spec, const UniformKvGeometry& geometry) {
  if (!std::has_single_bit(static_cast<uint64_t>(geometry.head_dim))) {
    throw InvalidInput("--kv", fmt::format("'{}': head_dim {}, expected a power of two", spec.text,
                                           geometry.head_dim));
  }
}

// ---- The cache.

// Rotations of one side (K or V), [D, D] per block and KV head; none: H.
class Rotations {
 public:
  Rotations(const MethodContext& context, const char* name) : dim_(context.geometry.head_dim) {
    if (context.data == nullptr) return;
    const UniformKvGeometry& geometry = context.geometry;
    for (int64_t layer = 0; layer < geometry.num_layers; ++layer) {
      const std::string tensor_name = BlockTensorName(name, layer);
      const Tensor& tensor = context.data->Get(tensor_name, {geometry.num_kv_heads, dim_, dim_});
      for (int64_t head = 0; head < geometry.num_kv_heads; ++head) {
        const float* rotation = tensor.As<float>() + head * dim_ * dim_;
        CheckOrthogonal(rotation, tensor_name, *context.data);
        rotations_.push_back(rotation);
      }
    }
  }

  // y = x R of the `index`-th rotation; x and y do not overlap.
  void Apply(size_t index, const float* x, float* y) const {
    if (rotations_.empty()) {
      std::copy_n(x, dim_, y);
      Hadamard(y, dim_);
      return;
    }
    std::fill_n(y, dim_, 0.0f);
    const float* row = rotations_[index];
    for (int64_t i = 0; i < dim_; ++i, row += dim_) {
      for (int64_t j = 0; j < dim_; ++j) y[j] += x[i] * row[j];
    }
  }

  // x = y R^T.
  void Undo(size_t index, const float* y, float* x) const {
    if (rotations_.empty()) {
      std::copy_n(y, dim_, x);
      Hadamard(x, dim_);
      return;
    }
    const float* row = rotations_[index];
    for (int64_t i = 0; i < dim_; ++i, row += dim_) {
      float sum = 0;
      for (int64_t j = 0; j < dim_; ++j) sum += y[j] * row[j];
      x[i] = sum;
    }
  }

 private:
  void CheckOrthogonal(const float* rotation, const std::string& name,
                       const MethodData& data) const {
    std::vector<float> product(static_cast<size_t>(dim_ * dim_));
    BlasGemm<float>(false, true, dim_, dim_, dim_, 1.0f, rotation, dim_, rotation, dim_, 0.0f,
                    product.data(), dim_);
    for (int64_t i = 0; i < dim_ * dim_; ++i) {
      const float unit = i % (dim_ + 1) == 0 ? 1.0f : 0.0f;
      // Written so that infinities, which finite but huge entries give, fail as well.
      if (std::abs(product[static_cast<size_t>(i)] - unit) <= kOrthogonality) continue;
      throw InvalidInput(data.path, fmt::format("{}: expected rotations, found a matrix that is "
                                                "not orthogonal",
                                                name));
    }
  }

  int64_t dim_;
  std::vector<const float*> rotations_;  // Owned by the data of from=.
};

class Oscar final : public CacheMethod {
 public:
  Oscar(const MethodSpec& spec, const MethodContext& context)
      : context_(Checked(spec, context)),
        key_rotations_(context, kKeyRotation),
        value_rotations_(context, kValueRotation) {
    format_.bits = static_cast<int>(spec.Integer("bits", 2));
    format_.metadata_type = context.float_type;
    key_clip_ = ClipIndex(spec.Real("clip", format_.bits == 2 ? 0.96 : 1.0));
    value_clip_ = ClipIndex(spec.Real("clip", format_.bits == 2 ? 0.92 : 1.0));
    window_.sink = spec.Integer("sink", 64);
    window_.recent = spec.Integer("recent", 256);
  }

  void OnAppend(int64_t layer, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState*) const override {
    const int64_t end = window_.QuantizedEnd(block.num_tokens());
    for (int64_t token = window_.QuantizedEnd(tokens.first); token < end; ++token) {
      for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
        const auto index = static_cast<size_t>(layer * block.num_kv_heads() + head);
        DamageRotated(key_rotations_, index, key_clip_, block.Key(token, head));
        DamageRotated(value_rotations_, index, value_clip_, block.Value(token, head));
      }
    }
  }

  // Rotations are weights, one set for all sequences.
  int64_t BlockBytes(int64_t, int64_t num_tokens) const override {
    return 2 * WindowedBytes(context_, format_, context_.geometry.group(), window_, num_tokens);
  }
  ByteGrowth Growth(int64_t) const override { return GrowthOf(window_, window_); }

 private:
  static const MethodContext& Checked(const MethodSpec& spec, const MethodContext& context) {
    CheckSpec(spec, context.geometry);
    const bool plain = spec.words.contains("hadamard");
    if (plain == (context.data != nullptr)) {
      throw InvalidInput(
          "--kv",
          plain ? fmt::format("'{}': hadamard takes no rotations, expected it or from=", spec.text)
                : fmt::format("'{}': no rotations, expected {}, or the word hadamard", spec.text,
                              ExpectedMethodData(spec.name)));
    }
    return context;
  }

  // Place of the largest magnitude that is kept, in ascending order.
  size_t ClipIndex(double clip) const {
    const auto dim = static_cast<double>(context_.geometry.head_dim);
    return static_cast<size_t>(std::min(clip * dim, dim - 1));
  }

  void DamageRotated(const Rotations& rotations, size_t index, size_t clip_index,
                     float* row) const {
    const int64_t dim = context_.geometry.head_dim;
    std::vector<float> rotated(static_cast<size_t>(dim));
    rotations.Apply(index, row, rotated.data());
    CheckFinite(rotated.data(), dim);
    std::vector<float> magnitudes(rotated.size());
    std::transform(rotated.begin(), rotated.end(), magnitudes.begin(),
                   [](float x) { return std::abs(x); });
    const auto place = magnitudes.begin() + static_cast<std::ptrdiff_t>(clip_index);
    std::nth_element(magnitudes.begin(), place, magnitudes.end());
    const float bound = *place;
    for (float& x : rotated) x = std::clamp(x, -bound, bound);
    DamageRow(format_, context_.geometry.group(), dim, rotated.data());
    rotations.Undo(index, rotated.data(), row);
  }

  MethodContext context_;
  Rotations key_rotations_;
  Rotations value_rotations_;
  AffineFormat format_;
  TokenWindow window_;
  size_t key_clip_ = 0;
  size_t value_clip_ = 0;
};

// ---- Calibration.

// One [D, D] matrix per block and KV head, in that order.
using Covariances = std::vector<double>;

// Adds a float matrix to the one of block and head.
void AddTo(const UniformKvGeometry& geometry, int64_t layer, int64_t head,
           const std::vector<float>& part, Covariances& all) {
  const size_t begin = static_cast<size_t>(layer * geometry.num_kv_heads + head) * part.size();
  for (size_t i = 0; i < part.size(); ++i) all[begin + i] += double{part[i]};
}

// Runs all samples; `add` adds one block of one sample to the covariances.
Covariances OverSamples(const CalibrationContext& calibration, const char* task,
                        const UniformKvGeometry& geometry,
                        const std::function<void(const BlockStates<float>&, Covariances&)>& add) {
  Profile<float> profile(*calibration.model, calibration.num_threads);
  SampleLoopStep step;
  step.task = task;
  step.num_values = static_cast<size_t>(geometry.num_layers * geometry.num_kv_heads *
                                        geometry.head_dim * geometry.head_dim);
  step.process = [&](std::span<const int32_t> tokens, std::span<const int64_t> positions) {
    Covariances sums(step.num_values);
    profile.Forward(tokens, positions,
                    [&](const BlockStates<float>& states) { add(states, sums); });
    return sums;
  };
  return LoopOverSamples(calibration, step);
}

// Q^T Q of every KV head, over all tokens and the query heads that share it.
Covariances QueryCovariances(const CalibrationContext& calibration,
                             const UniformKvGeometry& geometry) {
  const int64_t dim = geometry.head_dim;
  const int64_t stride = geometry.num_heads * dim;
  const int64_t heads_per_kv_head = geometry.num_heads / geometry.num_kv_heads;
  std::vector<float> product(static_cast<size_t>(dim * dim));
  return OverSamples(calibration, "oscar queries", geometry,
                     [&](const BlockStates<float>& states, Covariances& sums) {
                       for (int64_t head = 0; head < geometry.num_heads; ++head) {
                         const float* q = states.q + head * dim;
                         BlasGemm<float>(true, false, dim, dim, states.num_tokens, 1.0f, q, stride,
                                         q, stride, 0.0f, product.data(), dim);
                         AddTo(geometry, states.layer, head / heads_per_kv_head, product, sums);
                       }
                     });
}

// Sum over tokens of w_t v_t^T v_t of every KV head, w_t = k_t (Q^T Q) k_t^T.
Covariances ValueCovariances(const CalibrationContext& calibration,
                             const UniformKvGeometry& geometry, const Covariances& of_queries) {
  const int64_t dim = geometry.head_dim;
  const int64_t stride = geometry.kv_dim();
  const auto size = static_cast<size_t>(dim * dim);
  std::vector<float> weighing(size);
  std::vector<float> product(size);
  std::vector<float> rows;  // [N, D]
  const auto add = [&](const BlockStates<float>& states, Covariances& sums) {
    rows.resize(static_cast<size_t>(states.num_tokens * dim));
    for (int64_t head = 0; head < geometry.num_kv_heads; ++head) {
      const size_t begin = static_cast<size_t>(states.layer * geometry.num_kv_heads + head) * size;
      // Only its direction matters: scaled to a trace of 1, so that floats hold it.
      double trace = 1e-300;
      for (size_t i = 0; i < size; i += static_cast<size_t>(dim) + 1)
        trace += of_queries[begin + i];
      for (size_t i = 0; i < size; ++i) {
        weighing[i] = static_cast<float>(of_queries[begin + i] / trace);
      }
      const float* k = states.k + head * dim;
      const float* v = states.v + head * dim;
      BlasGemm<float>(false, false, states.num_tokens, dim, dim, 1.0f, k, stride, weighing.data(),
                      dim, 0.0f, rows.data(), dim);
      for (int64_t t = 0; t < states.num_tokens; ++t) {
        float* row = rows.data() + t * dim;
        double weight = 0;
        for (int64_t i = 0; i < dim; ++i) weight += double{row[i]} * double{k[t * stride + i]};
        for (int64_t i = 0; i < dim; ++i) row[i] = static_cast<float>(weight) * v[t * stride + i];
      }
      BlasGemm<float>(true, false, dim, dim, states.num_tokens, 1.0f, rows.data(), dim, v, stride,
                      0.0f, product.data(), dim);
      AddTo(geometry, states.layer, head, product, sums);
    }
  };
  return OverSamples(calibration, "oscar values", geometry, add);
}

int64_t BitReversed(int64_t index, int64_t dim) {
  int64_t reversed = 0;
  for (int64_t bit = 1; bit < dim; bit *= 2) {
    reversed = 2 * reversed + index % 2;
    index /= 2;
  }
  return reversed;
}

// R = U H P for one covariance [D, D]; rotation [D, D].
void RotationOf(const double* covariance, int64_t dim, float* rotation) {
  const SymmetricEigen eigen = EigenOfSymmetric(covariance, dim);
  std::vector<double> row(static_cast<size_t>(dim));
  for (int64_t i = 0; i < dim; ++i) {
    // Row i of U, times H (which is symmetric).
    for (int64_t j = 0; j < dim; ++j) {
      row[static_cast<size_t>(j)] = eigen.vectors[static_cast<size_t>(j * dim + i)];
    }
    Hadamard(row.data(), dim);
    for (int64_t rank = 0; rank < dim; ++rank) {  // Of the eigenvalue, the largest first.
      rotation[i * dim + BitReversed(rank, dim)] =
          static_cast<float>(row[static_cast<size_t>(dim - 1 - rank)]);
    }
  }
}

void AddRotations(const UniformKvGeometry& geometry, const char* name,
                  const Covariances& covariances, std::map<std::string, Tensor>& tensors) {
  const int64_t size = geometry.head_dim * geometry.head_dim;
  for (int64_t layer = 0; layer < geometry.num_layers; ++layer) {
    Tensor tensor(DType::kF32, {geometry.num_kv_heads, geometry.head_dim, geometry.head_dim});
    for (int64_t head = 0; head < geometry.num_kv_heads; ++head) {
      RotationOf(covariances.data() + (layer * geometry.num_kv_heads + head) * size,
                 geometry.head_dim, tensor.As<float>() + head * size);
    }
    tensors.emplace(BlockTensorName(name, layer), std::move(tensor));
  }
}

std::map<std::string, Tensor> CalibrateRotations(const MethodSpec& spec,
                                                 const MethodContext& context,
                                                 const CalibrationContext& calibration) {
  CheckSpec(spec, context.geometry);
  CalibrationContext without_checkpoint = calibration;
  without_checkpoint.checkpoint_path.clear();  // D^2 numbers a head: as text, too many to keep.
  const Covariances queries = QueryCovariances(without_checkpoint, context.geometry);
  const Covariances values = ValueCovariances(without_checkpoint, context.geometry, queries);
  std::map<std::string, Tensor> tensors;
  AddRotations(context.geometry, kKeyRotation, queries, tensors);
  AddRotations(context.geometry, kValueRotation, values, tensors);
  return tensors;
}

}  // namespace

SimulatedMethod OscarMethod() {
  return {"oscar",
          "keys (after RoPE) and values rotated by what attention sees, per token",
          {FromKey("rotations"), WordKey("hadamard", "no calibrated rotations, in place of from="),
           ChoiceKey("bits", {"8", "4", "3", "2"}, "2", "width of codes"),
           RealKey("clip", 0.5, 1, "0.96 for keys and 0.92 for values at 2 bits, else 1",
                   "share of a range that is kept"),
           IntegerKey("sink", 0, 4096, "64", "first tokens at full precision"),
           IntegerKey("recent", 0, 4096, "256", "newest tokens at full precision")},
          [](const MethodSpec& spec,
             const MethodContext& context) -> std::shared_ptr<const CacheMethod> {
            return std::make_shared<Oscar>(spec, context);
          },
          CalibrateRotations};
}

}  // namespace pmkvq
