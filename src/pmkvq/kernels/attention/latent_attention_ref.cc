// Scalar oracle of absorbed attention over packed latents: double precision, one row at a time.
#include <algorithm>
#include <cmath>
#include <vector>

#include "pmkvq/kernels/attention/latent_attention.h"
#include "pmkvq/kernels/kv_quant/kv_quant.h"
#include "pmkvq/kernels/kv_quant/kv_quant_common.h"

namespace pmkvq::ref {
namespace {

using internal::VisitFloatType;

double LoadFloat(DType dtype, const std::byte* data, int64_t index) {
  return VisitFloatType(dtype, [&]<class T>(T) {
    return static_cast<double>(ToFloat(reinterpret_cast<const T*>(data)[index]));
  });
}

// Token `token` of one head of a page, its `group` values as doubles.
void LoadGroup(const LatentShape& shape, const KvTensorView& tensor, int64_t group,
               int64_t capacity, int64_t head, int64_t token, double* out) {
  const int64_t row = head * capacity + token;
  if (tensor.bits == 16) {
    for (int64_t i = 0; i < group; ++i) {
      out[i] = LoadFloat(shape.float_type, tensor.data, row * group + i);
    }
    return;
  }
  const auto* packed =
      reinterpret_cast<const uint8_t*>(tensor.data) + row * PackedGroupBytes(group, tensor.bits);
  const double min = LoadFloat(shape.metadata_type, tensor.metadata, 2 * head * capacity + token);
  const double range =
      LoadFloat(shape.metadata_type, tensor.metadata, (2 * head + 1) * capacity + token);
  const double step = range / static_cast<double>(internal::MaxCode(tensor.bits));
  for (int64_t i = 0; i < group; ++i) {
    out[i] = internal::PackedCode(packed, group, tensor.bits, i) * step + min;
  }
}

// Stored tokens and the chunk's own, as doubles [tokens, r + dr].
std::vector<double> Gather(const LatentShape& shape, const AttentionSequence& sequence,
                           const KvPageView* pages, const LatentOperands& operands) {
  std::vector<double> keys;
  const auto more = [&] {
    keys.resize(keys.size() + static_cast<size_t>(shape.key_values()));
    return keys.data() + std::ssize(keys) - shape.key_values();
  };
  for (const PageTokens& page : sequence.pages) {
    for (int64_t t = 0; t < page.num_tokens; ++t) {
      double* out = more();
      for (int64_t head = 0; head < shape.latent / shape.group; ++head) {
        LoadGroup(shape, pages->k, shape.group, page.capacity, head, t, out + head * shape.group);
      }
      LoadGroup(shape, pages->v, shape.rope, page.capacity, 0, t, out + shape.latent);
    }
    ++pages;
  }
  for (int64_t row = sequence.first_row; row < sequence.first_row + sequence.num_rows; ++row) {
    double* out = more();
    std::copy_n(operands.c_new + row * shape.latent, shape.latent, out);
    std::copy_n(operands.kr_new + row * shape.rope, shape.rope, out + shape.latent);
  }
  return keys;
}

void AttendRow(const LatentShape& shape, const std::vector<double>& keys, int64_t visible,
               const float* q, float* out) {
  const int64_t dim = shape.key_values();
  std::vector<double> weights(static_cast<size_t>(visible));
  double max = -INFINITY;
  for (int64_t m = 0; m < visible; ++m) {
    double dot = 0.0;
    for (int64_t i = 0; i < dim; ++i) dot += q[i] * keys[static_cast<size_t>(m * dim + i)];
    weights[static_cast<size_t>(m)] = dot;
    max = std::max(max, dot);
  }
  double sum = 0.0;
  for (double& weight : weights) sum += weight = std::exp(weight - max);
  for (int64_t i = 0; i < shape.latent; ++i) {
    double value = 0.0;
    for (int64_t m = 0; m < visible; ++m) {
      value += weights[static_cast<size_t>(m)] * keys[static_cast<size_t>(m * dim + i)];
    }
    out[i] = static_cast<float>(value / sum);
  }
}

}  // namespace

void AttendLatents(const LatentShape& shape, std::span<const AttentionSequence> sequences,
                   const LatentOperands& operands) {
  for (size_t i = 0; i < sequences.size(); ++i) {
    const AttentionSequence& sequence = sequences[i];
    const std::vector<double> keys = Gather(shape, sequence, operands.pages[i], operands);
    const int64_t stored = std::ssize(keys) / shape.key_values() - sequence.num_rows;
    for (int64_t t = 0; t < sequence.num_rows; ++t) {
      for (int64_t head = 0; head < shape.num_heads; ++head) {
        const int64_t row = (sequence.first_row + t) * shape.num_heads + head;
        AttendRow(shape, keys, stored + t + 1, operands.q + row * shape.key_values(),
                  operands.out + row * shape.latent);
      }
    }
  }
}

}  // namespace pmkvq::ref
