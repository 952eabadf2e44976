#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>

#include "pmkvq/base/aligned.h"
#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/parallel.h"
#include "pmkvq/calib/calibration.h"
#include "pmkvq/calib/fake_quant.h"
#include "pmkvq/calib/sample_loop.h"
#include "pmkvq/io/hash.h"
#include "pmkvq/model/profile.h"

namespace pmkvq {
namespace {

constexpr const char* kTask = "rep-scales";
constexpr double kSmallestScale = 1e-4;
constexpr double kLargestScale = 1e4;

// max_keys^alpha within the bounds, [Hkv, D/2].
Tensor ScalesAt(const Tensor& max_keys, double alpha) {
  Tensor scales(DType::kF32, max_keys.shape());
  const float* from = max_keys.As<float>();
  std::transform(from, from + max_keys.num_elements(), scales.As<float>(), [alpha](float value) {
    const double scale = std::pow(static_cast<double>(value), alpha);
    return static_cast<float>(std::clamp(scale, kSmallestScale, kLargestScale));
  });
  return scales;
}

double AlphaAt(int n, int grid) { return 1.0 - static_cast<double>(n) / grid; }

// Errors of one block's attention output over the grid. Buffers are reused between blocks.
class BlockSearch {
 public:
  BlockSearch(const CalibrationContext& context, const RepScaleOptions& options,
              Profile<float>& profile)
      : context_(context),
        options_(options),
        profile_(profile),
        geometry_(context.model->kv_geometry()),
        hidden_size_(context.model->config().hidden_size) {}

  // Mean squared error per grid point; `max_keys` [Hkv, D/2] of this block.
  void Run(const BlockStates<float>& states, const Tensor& max_keys, double* loss) {
    const int64_t num_tokens = states.num_tokens;
    const int64_t kv_count = num_tokens * geometry_.kv_dim();
    const int64_t out_count = num_tokens * hidden_size_;
    Resize(num_tokens);
    profile_.AttentionOutput(states.layer, num_tokens, states.q, states.k, states.v, exact_.data());
    FakeQuantizeParallel(geometry_.group(), options_.v_bits, states.v, kv_count / geometry_.group(),
                         v_.data(), context_.num_threads);
    for (int n = 0; n < options_.grid; ++n) {
      ThrowIfCancelled(context_.cancel, kTask);
      ScaleQueriesAndKeys(states, ScalesAt(max_keys, AlphaAt(n, options_.grid)));
      FakeQuantizeParallel(geometry_.group(), options_.k_bits, k_.data(),
                           kv_count / geometry_.group(), k_.data(), context_.num_threads);
      profile_.AttentionOutput(states.layer, num_tokens, q_.data(), k_.data(), v_.data(),
                               out_.data());
      loss[n] = SquaredDistance(out_.data(), exact_.data(), out_count, context_.num_threads) /
                static_cast<double>(out_count);
    }
  }

 private:
  void Resize(int64_t num_tokens) {
    const auto rows = static_cast<size_t>(num_tokens);
    q_.resize(rows * static_cast<size_t>(geometry_.num_heads * geometry_.head_dim));
    k_.resize(rows * static_cast<size_t>(geometry_.kv_dim()));
    v_.resize(k_.size());
    exact_.resize(rows * static_cast<size_t>(hidden_size_));
    out_.resize(exact_.size());
  }

  // q * s and k / s (eq. 9); query head h uses the scales of its KV head.
  void ScaleQueriesAndKeys(const BlockStates<float>& states, const Tensor& scales) {
    constexpr int64_t kGrainTokens = 16;
    ParallelForRanges(
        context_.num_threads, states.num_tokens, kGrainTokens,
        [&](int64_t begin, int64_t end) { ScaleTokens(states, scales.As<float>(), begin, end); });
  }

  void ScaleTokens(const BlockStates<float>& states, const float* all_scales, int64_t begin,
                   int64_t end) {
    const int64_t dim = geometry_.head_dim;
    const int64_t half = dim / 2;
    const int64_t queries_per_kv = geometry_.num_heads / geometry_.num_kv_heads;
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t head = 0; head < geometry_.num_heads; ++head) {
        const float* s = all_scales + head / queries_per_kv * half;
        const int64_t offset = (t * geometry_.num_heads + head) * dim;
        for (int64_t i = 0; i < dim; ++i) {
          q_[static_cast<size_t>(offset + i)] = states.q[offset + i] * s[i % half];
        }
      }
      for (int64_t head = 0; head < geometry_.num_kv_heads; ++head) {
        const float* s = all_scales + head * half;
        const int64_t offset = (t * geometry_.num_kv_heads + head) * dim;
        for (int64_t i = 0; i < dim; ++i) {
          k_[static_cast<size_t>(offset + i)] = states.k[offset + i] / s[i % half];
        }
      }
    }
  }

  const CalibrationContext& context_;
  const RepScaleOptions& options_;
  Profile<float>& profile_;
  KvGeometry geometry_;
  int64_t hidden_size_;
  AlignedVector<float> q_, k_, v_, exact_, out_;
};

void CheckArguments(const KvGeometry& geometry, const std::vector<Tensor>& max_keys,
                    const RepScaleOptions& options) {
  for (const auto& [name, bits] :
       {std::pair{"k-bits", options.k_bits}, std::pair{"v-bits", options.v_bits}}) {
    if (std::find(kWidths.begin(), kWidths.end(), bits) == kWidths.end()) {
      throw InvalidInput(kTask, fmt::format("{}: found {}, expected 16, 8, 4 or 2", name, bits));
    }
  }
  if (options.grid < 1) {
    throw InvalidInput(kTask, fmt::format("grid: found {}, expected at least 1", options.grid));
  }
  PMKVQ_CHECK(static_cast<int64_t>(max_keys.size()) == geometry.num_layers);
  const Shape expected = {geometry.num_kv_heads, geometry.head_dim / 2};
  for (const Tensor& tensor : max_keys) PMKVQ_CHECK(tensor.shape() == expected);
}

std::string HashTensors(const std::vector<Tensor>& tensors) {
  Hash128 hash;
  for (const Tensor& tensor : tensors) hash.Update(tensor.view().data, tensor.view().num_bytes());
  return hash.HexDigest();
}

}  // namespace

RepScales SearchRepScales(const CalibrationContext& context, const std::vector<Tensor>& max_keys,
                          const RepScaleOptions& options) {
  const KvGeometry geometry = context.model->kv_geometry();
  CheckArguments(geometry, max_keys, options);
  Profile<float> profile(*context.model, context.num_threads);
  BlockSearch search(context, options, profile);
  SampleLoopStep step;
  step.task = kTask;
  step.options = fmt::format("k_bits {} v_bits {} grid {} max_keys {}", options.k_bits,
                             options.v_bits, options.grid, HashTensors(max_keys));
  step.num_values = static_cast<size_t>(geometry.num_layers * options.grid);
  step.process = [&](std::span<const int32_t> tokens, std::span<const int64_t> positions) {
    std::vector<double> values(step.num_values);
    profile.Forward(tokens, positions, [&](const BlockStates<float>& states) {
      search.Run(states, max_keys[static_cast<size_t>(states.layer)],
                 values.data() + states.layer * options.grid);
    });
    return values;
  };
  const std::vector<double> sums = LoopOverSamples(context, step);

  RepScales result;
  for (int64_t layer = 0; layer < geometry.num_layers; ++layer) {
    const auto begin = sums.begin() + layer * options.grid;
    std::vector<double> loss(begin, begin + options.grid);
    // The first of equal losses: the larger alpha.
    const auto best = std::min_element(loss.begin(), loss.end()) - loss.begin();
    const double alpha = AlphaAt(static_cast<int>(best), options.grid);
    result.alpha.push_back(alpha);
    result.scales.push_back(ScalesAt(max_keys[static_cast<size_t>(layer)], alpha));
    result.loss.push_back(std::move(loss));
  }
  return result;
}

}  // namespace pmkvq
