#include "pmkvq/research/methods/fastkvzip_gate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "pmkvq/base/error.h"
#include "pmkvq/base/random.h"
#include "pmkvq/kernels/gemm/gemm.h"

namespace pmkvq {
namespace {

constexpr float kEpsilon = 1e-6f;
constexpr float kScale = 0.25f;  // 1 / sqrt(16)
enum PartIndex : size_t { kQ, kQBias, kK, kQNorm, kKNorm, kB, kBase };

float Dot(const float* a, const float* b) {
  float sum = 0;
  for (int64_t i = 0; i < FastKvZipGate::kDim; ++i) sum += a[i] * b[i];
  return sum;
}

float InverseRms(const float* x) {
  return 1.0f / std::sqrt(Dot(x, x) / FastKvZipGate::kDim + kEpsilon);
}

// dx and dweight += the gradients of RMSNorm(x) weight, dy that of its result.
void NormalizeGrad(const float* x, const float* weight, const float* dy, float* dx,
                   float* dweight) {
  constexpr int64_t dim = FastKvZipGate::kDim;
  const float inverse = InverseRms(x);
  float sum = 0;
  for (int64_t i = 0; i < dim; ++i) {
    dweight[i] += dy[i] * x[i] * inverse;
    sum += dy[i] * weight[i] * x[i];
  }
  const float shared = sum * inverse * inverse * inverse / dim;
  for (int64_t i = 0; i < dim; ++i) dx[i] += dy[i] * weight[i] * inverse - x[i] * shared;
}

double Normal(Random& random) {
  return std::sqrt(-2 * std::log(1 - random.Uniform())) *
         std::cos(6.283185307179586 * random.Uniform());
}

}  // namespace

// Of one call: projected rows, raw and normalised.
struct FastKvZipGate::Rows {
  std::vector<float> raw_q, q;  // [count, Hkv, g, 16]
  std::vector<float> raw_k, k;  // [count, Hkv, 16]
  std::vector<float> gates;     // [count, Hkv, g], 1 / (1 + sum_j ...)
};

void FastKvZipGate::LayOut() {
  const auto add = [this](const char* name, const Shape& shape) {
    parts_.push_back({name, shape, parameters_.size()});
    parameters_.resize(parameters_.size() + static_cast<size_t>(NumElements(shape)), 0.0f);
  };
  add("q_proj.weight", {heads_ * group_ * kDim, width_});
  add("q_proj.bias", {heads_ * group_ * kDim});
  add("k_proj.weight", {heads_ * kDim, width_});
  add("q_norm.weight", {kDim});
  add("k_norm.weight", {kDim});
  add("b", {heads_, 1, group_});
  add("k_base", {heads_, 1, kBases, kDim});
}

FastKvZipGate::FastKvZipGate(int64_t num_kv_heads, int64_t group, int64_t width, uint64_t seed)
    : heads_(num_kv_heads), group_(group), width_(width) {
  LayOut();
  Random random(seed);
  const auto fill = [&](PartIndex part, double spread) {
    float* const values = parameters_.data() + parts_[part].begin;
    for (int64_t i = 0; i < NumElements(parts_[part].shape); ++i) {
      values[i] = static_cast<float>(spread * Normal(random));
    }
  };
  fill(kQ, 1 / std::sqrt(static_cast<double>(width)));
  fill(kK, 1 / std::sqrt(static_cast<double>(width)));
  fill(kBase, 1);
  std::fill_n(parameters_.data() + parts_[kQNorm].begin, 2 * kDim, 1.0f);
  velocity_.resize(parameters_.size());
}

FastKvZipGate::FastKvZipGate(const std::map<std::string, Tensor>& tensors,
                             const std::string& prefix, int64_t num_kv_heads, int64_t group,
                             const std::string& file)
    : heads_(num_kv_heads), group_(group) {
  const auto find = [&](const std::string& name) -> const Tensor& {
    const auto found = tensors.find(prefix + name);
    if (found != tensors.end()) return found->second;
    throw InvalidInput(file, fmt::format("tensor '{}{}': found none, expected a gate of each block",
                                         prefix, name));
  };
  const Shape& of_q = find("q_proj.weight").shape();
  width_ = of_q.size() == 2 ? of_q[1] : 0;
  LayOut();
  for (const Part& part : parts_) {
    const Tensor& tensor = find(part.name);
    if (tensor.shape() != part.shape) {
      throw InvalidInput(file,
                         fmt::format("tensor '{}{}': found {}, expected {}", prefix, part.name,
                                     ToString(tensor.shape()), ToString(part.shape)));
    }
    std::copy_n(tensor.As<float>(), tensor.num_elements(), parameters_.data() + part.begin);
  }
}

void FastKvZipGate::WriteTo(const std::string& prefix,
                            std::map<std::string, Tensor>& tensors) const {
  for (const Part& part : parts_) {
    Tensor tensor(DType::kF32, part.shape);
    std::copy_n(parameters_.data() + part.begin, tensor.num_elements(), tensor.As<float>());
    tensors[prefix + part.name] = std::move(tensor);
  }
}

void FastKvZipGate::Normalize(const float* raw, const float* weight, float* out) const {
  const float inverse = InverseRms(raw);
  for (int64_t i = 0; i < kDim; ++i) out[i] = raw[i] * inverse * weight[i];
}

void FastKvZipGate::Forward(const float* h, int64_t count, Rows& rows) const {
  const int64_t q_width = heads_ * group_ * kDim;
  const int64_t k_width = heads_ * kDim;
  rows.raw_q.resize(static_cast<size_t>(count * q_width));
  rows.raw_k.resize(static_cast<size_t>(count * k_width));
  rows.q.resize(rows.raw_q.size());
  rows.k.resize(rows.raw_k.size());
  rows.gates.resize(static_cast<size_t>(count * heads_ * group_));
  BlasGemm(false, true, count, q_width, width_, 1.0f, h, width_, At(kQ), width_, 0.0f,
           rows.raw_q.data(), q_width);
  BlasGemm(false, true, count, k_width, width_, 1.0f, h, width_, At(kK), width_, 0.0f,
           rows.raw_k.data(), k_width);
  for (int64_t row = 0; row < count; ++row) {
    for (int64_t head = 0; head < heads_; ++head) {
      const int64_t k_at = (row * heads_ + head) * kDim;
      Normalize(rows.raw_k.data() + k_at, At(kKNorm), rows.k.data() + k_at);
      for (int64_t of_group = 0; of_group < group_; ++of_group) {
        const int64_t index = head * group_ + of_group;
        const int64_t at = (row * heads_ * group_ + index) * kDim;
        float* const raw = rows.raw_q.data() + at;
        for (int64_t i = 0; i < kDim; ++i) raw[i] += At(kQBias)[index * kDim + i];
        float* const q = rows.q.data() + at;
        Normalize(raw, At(kQNorm), q);
        const float logit = kScale * Dot(q, rows.k.data() + k_at) + At(kB)[index];
        float sum = 1;
        for (int64_t j = 0; j < kBases; ++j) {
          sum += std::exp(kScale * Dot(q, At(kBase) + (head * kBases + j) * kDim) - logit);
        }
        rows.gates[static_cast<size_t>(row * heads_ * group_ + index)] = 1 / sum;
      }
    }
  }
}

void FastKvZipGate::Score(const float* h, int64_t count, float* scores) const {
  Rows rows;
  Forward(h, count, rows);
  for (int64_t i = 0; i < count * heads_; ++i) {
    float sum = 0;
    for (int64_t of_group = 0; of_group < group_; ++of_group) {
      sum += rows.gates[static_cast<size_t>(i * group_ + of_group)];
    }
    scores[i] = sum / static_cast<float>(group_);
  }
}

double FastKvZipGate::Loss(const float* h, int64_t count, const float* targets) const {
  std::vector<float> scores(static_cast<size_t>(count * heads_));
  Score(h, count, scores.data());
  double sum = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    const double score = std::clamp(double{scores[i]}, 1e-6, 1 - 1e-6);
    sum -= double{targets[i]} * std::log(score) + (1 - double{targets[i]}) * std::log(1 - score);
  }
  return sum / static_cast<double>(scores.size());
}

std::vector<float> FastKvZipGate::Gradient(const float* h, int64_t count,
                                           const float* targets) const {
  Rows rows;
  Forward(h, count, rows);
  std::vector<float> gradient(parameters_.size(), 0.0f);
  const auto of_part = [&](PartIndex part) { return gradient.data() + parts_[part].begin; };
  std::vector<float> d_raw_q(rows.raw_q.size(), 0.0f);
  std::vector<float> d_raw_k(rows.raw_k.size(), 0.0f);
  const float share = 1 / static_cast<float>(count * heads_);
  for (int64_t row = 0; row < count; ++row) {
    for (int64_t head = 0; head < heads_; ++head) {
      const float* const gates = rows.gates.data() + (row * heads_ + head) * group_;
      float score = 0;
      for (int64_t i = 0; i < group_; ++i) score += gates[i] / static_cast<float>(group_);
      const float target = targets[row * heads_ + head];
      const float inside = std::clamp(score, 1e-6f, 1 - 1e-6f);
      const float d_score = share * (inside - target) / (inside * (1 - inside));
      const int64_t k_at = (row * heads_ + head) * kDim;
      const float* const k = rows.k.data() + k_at;
      float d_k[kDim] = {};
      for (int64_t of_group = 0; of_group < group_; ++of_group) {
        const int64_t index = head * group_ + of_group;
        const int64_t at = (row * heads_ * group_ + index) * kDim;
        const float* const q = rows.q.data() + at;
        const float gate = gates[of_group];
        // gate = sigmoid(logit - log sum_j exp(base_j))
        const float d_logit = d_score / static_cast<float>(group_) * gate * (1 - gate);
        of_part(kB)[index] += d_logit;
        float bases[kBases];
        for (int64_t j = 0; j < kBases; ++j) {
          bases[j] = kScale * Dot(q, At(kBase) + (head * kBases + j) * kDim);
        }
        const float largest = *std::max_element(bases, bases + kBases);
        float sum = 0;
        for (float& base : bases) sum += base = std::exp(base - largest);
        float d_q[kDim] = {};
        for (int64_t i = 0; i < kDim; ++i) {
          d_q[i] += d_logit * kScale * k[i];
          d_k[i] += d_logit * kScale * q[i];
        }
        for (int64_t j = 0; j < kBases; ++j) {
          const float d_base = -d_logit * bases[j] / sum * kScale;
          const float* const base = At(kBase) + (head * kBases + j) * kDim;
          float* const of_base = of_part(kBase) + (head * kBases + j) * kDim;
          for (int64_t i = 0; i < kDim; ++i) {
            d_q[i] += d_base * base[i];
            of_base[i] += d_base * q[i];
          }
        }
        NormalizeGrad(rows.raw_q.data() + at, At(kQNorm), d_q, d_raw_q.data() + at,
                      of_part(kQNorm));
        for (int64_t i = 0; i < kDim; ++i) {
          of_part(kQBias)[index * kDim + i] += d_raw_q[static_cast<size_t>(at + i)];
        }
      }
      NormalizeGrad(rows.raw_k.data() + k_at, At(kKNorm), d_k, d_raw_k.data() + k_at,
                    of_part(kKNorm));
    }
  }
  const int64_t q_width = heads_ * group_ * kDim;
  const int64_t k_width = heads_ * kDim;
  BlasGemm(true, false, q_width, width_, count, 1.0f, d_raw_q.data(), q_width, h, width_, 0.0f,
           of_part(kQ), width_);
  BlasGemm(true, false, k_width, width_, count, 1.0f, d_raw_k.data(), k_width, h, width_, 0.0f,
           of_part(kK), width_);
  return gradient;
}

void FastKvZipGate::Step(const float* h, int64_t count, const float* targets, float rate,
                         float momentum) {
  const std::vector<float> gradient = Gradient(h, count, targets);
  for (size_t i = 0; i < parameters_.size(); ++i) {
    velocity_[i] = momentum * velocity_[i] + gradient[i];
    parameters_[i] -= rate * velocity_[i];
  }
}

}  // namespace pmkvq
