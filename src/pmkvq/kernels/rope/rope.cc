#include "pmkvq/kernels/rope/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/base/parallel.h"

namespace pmkvq {
namespace {

// Everything below keeps the float arithmetic of Hugging Face's modeling_rope_utils: frequencies
// are float tensors there, while correction ranges are Python floats (doubles).

// theta^(2i/D); the float exponent is PyTorch's, the power is rounded once.
std::vector<float> Periods(const RopeParams& params) {
  std::vector<float> periods(static_cast<size_t>(params.head_dim / 2));
  for (size_t i = 0; i < periods.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(params.head_dim);
    periods[i] = static_cast<float>(std::pow(params.theta, static_cast<double>(exponent)));
  }
  return periods;
}

// Long wavelengths are slowed down by `factor`, short ones kept, those between blended.
float Llama3Frequency(const RopeParams& params, float frequency) {
  const float factor = static_cast<float>(params.factor);
  const float old_context = static_cast<float>(params.original_max_position);
  const float low = static_cast<float>(params.low_freq_factor);
  const float high = static_cast<float>(params.high_freq_factor);
  const float wavelength = static_cast<float>(2.0 * std::numbers::pi) / frequency;
  if (wavelength > old_context / low) return frequency / factor;
  if (wavelength < old_context / high) return frequency;
  const float smooth = (old_context / wavelength - low) / (high - low);
  return (1.0f - smooth) * frequency / factor + smooth * frequency;
}

// The (fractional) pair index that turns `rotations` times within the original context.
double YarnCorrectionDim(const RopeParams& params, double rotations) {
  const double context = static_cast<double>(params.original_max_position);
  return static_cast<double>(params.head_dim) *
         std::log(context / (rotations * 2.0 * std::numbers::pi)) / (2.0 * std::log(params.theta));
}

// Pairs below the first index keep their frequency, those above the second are interpolated.
std::pair<double, double> YarnCorrectionRange(const RopeParams& params) {
  double low = YarnCorrectionDim(params, params.beta_fast);
  double high = YarnCorrectionDim(params, params.beta_slow);
  if (params.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(params.head_dim - 1));
  if (low == high) high += 0.001;  // No division by zero.
  return {low, high};
}

float YarnFrequency(const RopeParams& params, std::pair<double, double> range, size_t i,
                    float period) {
  const float low = static_cast<float>(range.first);
  const float width = static_cast<float>(range.second - range.first);
  const float ramp = std::clamp((static_cast<float>(i) - low) / width, 0.0f, 1.0f);
  const float keep = 1.0f - ramp;
  const float interpolated = 1.0f / (static_cast<float>(params.factor) * period);
  return interpolated * (1.0f - keep) + 1.0f / period * keep;
}

std::vector<float> Frequencies(const RopeParams& params) {
  std::vector<float> values = Periods(params);
  const bool yarn = params.scaling == RopeParams::Scaling::kYarn;
  const auto range = yarn ? YarnCorrectionRange(params) : std::pair<double, double>{};
  for (size_t i = 0; i < values.size(); ++i) {
    const float period = values[i];
    switch (params.scaling) {
      case RopeParams::Scaling::kDefault:
        values[i] = 1.0f / period;
        break;
      case RopeParams::Scaling::kLinear:
        values[i] = 1.0f / period / static_cast<float>(params.factor);
        break;
      case RopeParams::Scaling::kLlama3:
        values[i] = Llama3Frequency(params, 1.0f / period);
        break;
      case RopeParams::Scaling::kYarn:
        values[i] = YarnFrequency(params, range, i, period);
        break;
      case RopeParams::Scaling::kFactors:
        values[i] = 1.0f / period / params.factors[i];
        break;
    }
  }
  return values;
}

// cos and sin of one position, times the attention factor.
template <class Real>
struct Rotation {
  std::vector<Real> cos;
  std::vector<Real> sin;

  void Resize(size_t size) {
    cos.resize(size);
    sin.resize(size);
  }
  void Set(const RopeTable& table, int64_t position) {
    const Real factor = static_cast<Real>(table.attention_factor());
    for (size_t i = 0; i < cos.size(); ++i) {
      // The product is rounded to Real (float: as PyTorch does it), its cosine is then exact.
      const Real angle = static_cast<Real>(position) * static_cast<Real>(table.frequencies()[i]);
      cos[i] = static_cast<Real>(std::cos(static_cast<double>(angle))) * factor;
      sin[i] = static_cast<Real>(std::sin(static_cast<double>(angle))) * factor;
    }
  }
};

// Calls rotate_head(rotation, head index, head's data) for every head of every row.
template <class Real, class RotateHead>
void ForEachHead(const RopeTable& table, const int64_t* positions, int64_t num_rows,
                 const RopeHeads& heads, Real* x, const ExecContext& exec, RotateHead rotate_head) {
  constexpr double kNsPerPair = 10;  // Its sine and cosine, in double, once per row.
  constexpr double kNsPerElement = 0.3;
  constexpr int64_t kGrainRows = 16;
  const int64_t head_dim = table.head_dim();
  const double row_ns = static_cast<double>(head_dim / 2) * kNsPerPair +
                        static_cast<double>(heads.num_heads * head_dim) * kNsPerElement;
  const int threads = UsefulThreads(exec.num_threads, static_cast<double>(num_rows) * row_ns);
  const auto rotate_rows = [&](int64_t begin, int64_t end) {
    static thread_local Rotation<Real> rotation;  // Decoding a token allocates nothing.
    rotation.Resize(static_cast<size_t>(head_dim / 2));
    for (int64_t row = begin; row < end; ++row) {
      rotation.Set(table, positions[row]);
      for (int64_t head = 0; head < heads.num_heads; ++head) {
        rotate_head(rotation, head, x + row * heads.row_stride + head * heads.head_stride);
      }
    }
  };
  ParallelForRanges(threads, num_rows, kGrainRows, rotate_rows);
}

// Heads one behind the other.
RopeHeads HalvesOf(const RopeTable& table, int64_t num_heads) {
  return {num_heads, num_heads * table.head_dim(), table.head_dim(), false};
}

// Turns the pairs of one head by the angles of `rotation`, or back by them (the gradient). Values
// of pair i are 2 i and 2 i + 1 where `kInPairs`, else i and i + half. Both are constants of the
// loop, so that halves become vectors.
template <bool kBack, bool kInPairs, class Real>
void TurnPairs(const Rotation<Real>& rotation, int64_t half, Real* data) {
  const Real* const cosines = rotation.cos.data();
  const Real* const sines = rotation.sin.data();
  constexpr int64_t kStep = kInPairs ? 2 : 1;
  Real* const upper = data + (kInPairs ? 1 : half);
  for (int64_t i = 0; i < half; ++i) {
    const Real first = data[i * kStep];
    const Real second = upper[i * kStep];
    const Real sine = kBack ? -sines[i] : sines[i];
    data[i * kStep] = first * cosines[i] - second * sine;
    upper[i * kStep] = second * cosines[i] + first * sine;
  }
}

template <bool kBack, class Real>
void TurnHeads(const RopeTable& table, const int64_t* positions, int64_t num_rows,
               const RopeHeads& heads, Real* x, const ExecContext& exec) {
  const int64_t half = table.head_dim() / 2;
  ForEachHead(
      table, positions, num_rows, heads, x, exec,
      [half, in_pairs = heads.in_pairs](const Rotation<Real>& rotation, int64_t, Real* data) {
        if (in_pairs) {
          TurnPairs<kBack, true>(rotation, half, data);
        } else {
          TurnPairs<kBack, false>(rotation, half, data);
        }
      });
}

}  // namespace

RopeTable::RopeTable(const RopeParams& params)
    : attention_factor_(params.scaling == RopeParams::Scaling::kYarn ? params.attention_factor
                                                                     : 1.0) {
  PMKVQ_CHECK(params.head_dim > 0 && params.head_dim % 2 == 0);
  PMKVQ_CHECK(params.theta > 0.0 && params.factor > 0.0);
  const bool needs_context = params.scaling == RopeParams::Scaling::kLlama3 ||
                             params.scaling == RopeParams::Scaling::kYarn;
  PMKVQ_CHECK_MSG(!needs_context || params.original_max_position > 0,
                  "llama3 and yarn need the original context length");
  PMKVQ_CHECK_MSG(params.scaling != RopeParams::Scaling::kFactors ||
                      std::ssize(params.factors) == params.head_dim / 2,
                  "factors are one for each pair");
  frequencies_ = Frequencies(params);
}

template <class Real>
void RotateHeads(const RopeTable& table, const int64_t* positions, int64_t num_rows,
                 const RopeHeads& heads, Real* x, const ExecContext& exec) {
  TurnHeads</*kBack=*/false>(table, positions, num_rows, heads, x, exec);
}

template <class Real>
void RotateHeadsGrad(const RopeTable& table, const int64_t* positions, int64_t num_rows,
                     const RopeHeads& heads, Real* x, const ExecContext& exec) {
  TurnHeads</*kBack=*/true>(table, positions, num_rows, heads, x, exec);
}

template <class Real>
void ApplyRope(const RopeTable& table, const int64_t* positions, int64_t num_rows,
               int64_t num_heads, const float* scales, Real* x, const ExecContext& exec) {
  const int64_t half = table.head_dim() / 2;
  ForEachHead(table, positions, num_rows, HalvesOf(table, num_heads), x, exec,
              [=](const Rotation<Real>& rotation, int64_t head, Real* data) {
                TurnPairs</*kBack=*/false, /*kInPairs=*/false>(rotation, half, data);
                if (scales == nullptr) return;
                Real* const upper = data + half;
                const float* scale = scales + head * half;
                for (int64_t i = 0; i < half; ++i) {
                  data[i] *= static_cast<Real>(scale[i]);
                  upper[i] *= static_cast<Real>(scale[i]);
                }
              });
}

template <class Real>
void ApplyRopeGrad(const RopeTable& table, const int64_t* positions, int64_t num_rows,
                   int64_t num_heads, Real* x, const ExecContext& exec) {
  RotateHeadsGrad(table, positions, num_rows, HalvesOf(table, num_heads), x, exec);
}

#define PMKVQ_INSTANTIATE(Real)                                                                    \
  template void ApplyRope<Real>(const RopeTable&, const int64_t*, int64_t, int64_t, const float*,  \
                                Real*, const ExecContext&);                                        \
  template void ApplyRopeGrad<Real>(const RopeTable&, const int64_t*, int64_t, int64_t, Real*,     \
                                    const ExecContext&);                                           \
  template void RotateHeads<Real>(const RopeTable&, const int64_t*, int64_t, const RopeHeads&,     \
                                  Real*, const ExecContext&);                                      \
  template void RotateHeadsGrad<Real>(const RopeTable&, const int64_t*, int64_t, const RopeHeads&, \
                                      Real*, const ExecContext&);
PMKVQ_INSTANTIATE(float)
PMKVQ_INSTANTIATE(double)
#undef PMKVQ_INSTANTIATE

}  // namespace pmkvq
