// Oracle of decode attention over pages in fragment order: double precision, one head at a time.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "pmkvq/base/check.h"
#include "pmkvq/base/float16.h"
#include "pmkvq/kernels/attention/decode_attention.h"
#include "pmkvq/kernels/kv_quant/fragment_page.h"
#include "pmkvq/kernels/kv_quant/kv_quant_common.h"

namespace pmkvq::ref {
namespace {

double FloatAt(DType type, const std::byte* data, int64_t index) {
  return internal::VisitFloatType(type, [&]<class T>(T) {
    T value{};
    std::memcpy(&value, data + static_cast<size_t>(index) * sizeof(T), sizeof(T));
    return static_cast<double>(ToFloat(value));
  });
}

const std::byte* At(const DecodeOperands& operands, uint32_t units) {
  return operands.arena + static_cast<size_t>(units) * fragment::kArenaUnit;
}

void AppendRow(const DecodeShape& shape, const DecodeOperands& operands, bool is_values,
               uint32_t codes, uint32_t metadata, int bits, int64_t head, int64_t token,
               std::vector<double>& out) {
  const bool by_channel = shape.keys_by_channel && !is_values;
  const FragmentPageShape page{shape.num_kv_heads, shape.head_dim, is_values, by_channel};
  const auto head_dim = static_cast<int>(shape.head_dim);
  const int64_t groups = fragment::GroupsOfHead(head_dim, by_channel);
  const int64_t of_token = fragment::GroupsOfToken(head_dim);
  for (int64_t dim = 0; dim < shape.head_dim; ++dim) {
    const uint32_t value = FragmentValue(page, bits, At(operands, codes), head, token, dim);
    if (bits == 16) {
      const auto half = static_cast<uint16_t>(value);
      out.push_back(FloatAt(shape.float_type, reinterpret_cast<const std::byte*>(&half), 0));
      continue;
    }
    const std::byte* bounds = At(operands, metadata) + head * 4 * groups;
    const int64_t group = by_channel ? dim : token * of_token + dim * of_token / shape.head_dim;
    const double min = FloatAt(shape.float_type, bounds, group);
    const double range = FloatAt(shape.float_type, bounds, groups + group);
    out.push_back(value * (range / static_cast<double>(internal::MaxCode(bits))) + min);
  }
}

}  // namespace

DenseHead ReadHead(const DecodeShape& shape, const DecodeOperands& operands, int64_t sequence,
                   int64_t head) {
  DenseHead dense;
  const int64_t row = operands.table_rows == nullptr ? sequence : operands.table_rows[sequence];
  const int32_t num_tokens = operands.num_tokens[sequence];
  const int32_t in_rest = shape.sink.InRest(num_tokens);
  const int32_t in_pages = shape.sink.InPages(num_tokens);
  const int32_t hidden = shape.Hidden(num_tokens);
  for (int32_t token = shape.sink.InRest(hidden); token < in_rest; ++token) {
    dense.positions.push_back(shape.sink.piece_tokens + token);
    for (int64_t dim = 0; dim < shape.head_dim; ++dim) {
      const int64_t index = (head * shape.sink.rest_tokens + token) * shape.head_dim + dim;
      dense.k.push_back(
          FloatAt(shape.float_type, At(operands, operands.sink_rests[2 * row]), index));
      dense.v.push_back(
          FloatAt(shape.float_type, At(operands, operands.sink_rests[2 * row + 1]), index));
    }
  }
  for (int32_t token = shape.sink.InPages(hidden); token < in_pages; ++token) {
    const bool is_behind_rest = token >= shape.sink.piece_tokens;
    dense.positions.push_back(token + (is_behind_rest ? shape.sink.rest_tokens : 0));
    const int64_t page = row * operands.max_pages + token / fragment::kTokens;
    const PageEntry& entry = operands.entries[page];
    const PageBits& bits = operands.bits[page];
    const int64_t in_page = token % fragment::kTokens;
    AppendRow(shape, operands, false, entry.k, entry.k_metadata, bits.k, head, in_page, dense.k);
    AppendRow(shape, operands, true, entry.v, entry.v_metadata, bits.v, head, in_page, dense.v);
  }
  return dense;
}

void AttendHead(const DecodeShape& shape, const double* q, const DenseHead& dense, double* out) {
  const int64_t dims = shape.head_dim;
  const auto num_tokens = static_cast<int64_t>(dense.k.size()) / dims;
  const int32_t hidden =
      shape.Hidden(*std::max_element(dense.positions.begin(), dense.positions.end()) + 1);
  std::vector<double> weights;
  double largest = -INFINITY;
  for (int64_t m = 0; m < num_tokens; ++m) {
    double dot = 0.0;
    for (int64_t d = 0; d < dims; ++d) {
      dot += q[d] * dense.k[static_cast<size_t>(m * dims + d)];
    }
    const bool is_hidden = dense.positions[static_cast<size_t>(m)] < hidden;
    weights.push_back(is_hidden ? -INFINITY : dot * static_cast<double>(shape.scale));
    largest = std::max(largest, weights.back());
  }
  double sum = 0.0;
  for (double& weight : weights) sum += weight = std::exp(weight - largest);
  for (int64_t d = 0; d < dims; ++d) {
    double value = 0.0;
    for (int64_t m = 0; m < num_tokens; ++m) {
      value += weights[static_cast<size_t>(m)] * dense.v[static_cast<size_t>(m * dims + d)];
    }
    out[d] = value / sum;
  }
}

void DecodeAttention(const DecodeShape& shape, const DecodeOperands& operands, double* out) {
  const int64_t group = shape.num_heads / shape.num_kv_heads;
  for (int64_t sequence = 0; sequence < operands.num_sequences; ++sequence) {
    if (operands.num_tokens[sequence] == 0) continue;
    for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
      const DenseHead dense = ReadHead(shape, operands, sequence, head);
      for (int64_t j = 0; j < group; ++j) {
        const int64_t row = (sequence * shape.num_heads + head * group + j) * shape.head_dim;
        std::vector<double> q;
        for (int64_t d = 0; d < shape.head_dim; ++d) {
          q.push_back(FloatAt(DType::kF16, operands.q, row + d));
        }
        AttendHead(shape, q.data(), dense, out + row);
      }
    }
  }
}

}  // namespace pmkvq::ref
