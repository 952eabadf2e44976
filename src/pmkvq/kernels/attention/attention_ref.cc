// Scalar oracle of attention over packed pages: double precision, one row at a time.
#include <algorithm>
#include <cmath>
#include <vector>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/attention/attention.h"
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

// Row `token` of head `head` as doubles.
void LoadRow(const AttentionShape& shape, const KvTensorView& tensor, int64_t capacity,
             int64_t head, int64_t token, double* out) {
  const int64_t dim = shape.head_dim;
  if (tensor.bits == 16) {
    for (int64_t i = 0; i < dim; ++i) {
      out[i] = LoadFloat(shape.float_type, tensor.data, (head * capacity + token) * dim + i);
    }
    return;
  }
  if (tensor.axis == QuantAxis::kChannel) {
    const int64_t row_bytes = PackedGroupBytes(capacity, tensor.bits);
    for (int64_t i = 0; i < dim; ++i) {
      const auto* packed =
          reinterpret_cast<const uint8_t*>(tensor.data) + (head * dim + i) * row_bytes;
      const double step =
          LoadFloat(shape.metadata_type, tensor.metadata, (head * 2 + 1) * dim + i) /
          static_cast<double>(internal::MaxCode(tensor.bits));
      out[i] = internal::PackedCode(packed, capacity, tensor.bits, token) * step +
               LoadFloat(shape.metadata_type, tensor.metadata, (head * 2 + 0) * dim + i);
    }
    return;
  }
  const int64_t groups = dim / shape.group;
  const int64_t group_bytes = PackedGroupBytes(shape.group, tensor.bits);
  for (int64_t i = 0; i < dim; ++i) {
    const int64_t g = i / shape.group;
    const int64_t row = (head * capacity + token) * groups + g;
    const auto* packed = reinterpret_cast<const uint8_t*>(tensor.data) + row * group_bytes;
    const int64_t min_index = ((head * 2 + 0) * capacity + token) * groups + g;
    const int64_t range_index = ((head * 2 + 1) * capacity + token) * groups + g;
    const double step = LoadFloat(shape.metadata_type, tensor.metadata, range_index) /
                        static_cast<double>(internal::MaxCode(tensor.bits));
    out[i] = internal::PackedCode(packed, shape.group, tensor.bits, i % shape.group) * step +
             LoadFloat(shape.metadata_type, tensor.metadata, min_index);
  }
}

struct DenseHead {
  int64_t num_tokens = 0;
  std::vector<double> k;  // [num_tokens, D]
  std::vector<double> v;  // [num_tokens, D]
};

// Stored tokens and the chunk's own, as doubles.
DenseHead Gather(const AttentionShape& shape, const AttentionSequence& sequence,
                 const KvPageView* pages, const AttentionOperands& operands, int64_t head) {
  const int64_t dim = shape.head_dim;
  DenseHead dense;
  for (const PageTokens& page : sequence.pages) dense.num_tokens += page.num_tokens;
  dense.num_tokens += sequence.num_rows;
  dense.k.resize(static_cast<size_t>(dense.num_tokens * dim));
  dense.v.resize(dense.k.size());
  double* k = dense.k.data();
  double* v = dense.v.data();
  for (const PageTokens& page : sequence.pages) {
    for (int64_t t = 0; t < page.num_tokens; ++t, k += dim, v += dim) {
      LoadRow(shape, pages->k, page.capacity, head, t, k);
      LoadRow(shape, pages->v, page.capacity, head, t, v);
    }
    ++pages;
  }
  for (int64_t t = 0; t < sequence.num_rows; ++t, k += dim, v += dim) {
    const int64_t row = ((sequence.first_row + t) * shape.num_kv_heads + head) * dim;
    std::copy_n(operands.k_new + row, dim, k);
    std::copy_n(operands.v_new + row, dim, v);
  }
  return dense;
}

void AttendRow(const AttentionShape& shape, const DenseHead& dense, int64_t visible, const float* q,
               float* out) {
  const int64_t dim = shape.head_dim;
  const int64_t window = shape.sliding_window;
  const int64_t first = window == 0 ? 0 : std::max<int64_t>(0, visible - window);
  std::vector<double> weights(static_cast<size_t>(visible));
  double max = -INFINITY;
  for (int64_t m = first; m < visible; ++m) {
    double dot = 0.0;
    for (int64_t i = 0; i < dim; ++i) dot += q[i] * dense.k[static_cast<size_t>(m * dim + i)];
    weights[static_cast<size_t>(m)] = dot * shape.scale;
    max = std::max(max, dot * shape.scale);
  }
  double sum = 0.0;
  for (int64_t m = first; m < visible; ++m) {
    double& weight = weights[static_cast<size_t>(m)];
    sum += weight = std::exp(weight - max);
  }
  for (int64_t i = 0; i < dim; ++i) {
    double value = 0.0;
    for (int64_t m = first; m < visible; ++m) {
      value += weights[static_cast<size_t>(m)] * dense.v[static_cast<size_t>(m * dim + i)];
    }
    out[i] = static_cast<float>(value / sum);
  }
}

}  // namespace

void Attend(const AttentionShape& shape, std::span<const AttentionSequence> sequences,
            const AttentionOperands& operands) {
  PMKVQ_CHECK(shape.num_kv_heads > 0 && shape.num_heads % shape.num_kv_heads == 0);
  const int64_t heads_per_kv = shape.num_heads / shape.num_kv_heads;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const AttentionSequence& sequence = sequences[i];
    for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
      const DenseHead dense = Gather(shape, sequence, operands.pages[i], operands, head);
      const int64_t stored = dense.num_tokens - sequence.num_rows;
      for (int64_t t = 0; t < sequence.num_rows; ++t) {
        for (int64_t j = 0; j < heads_per_kv; ++j) {
          const int64_t row =
              ((sequence.first_row + t) * shape.num_heads + head * heads_per_kv + j) *
              shape.head_dim;
          AttendRow(shape, dense, stored + t + 1, operands.q + row, operands.out + row);
        }
      }
    }
  }
}

}  // namespace pmkvq::ref
