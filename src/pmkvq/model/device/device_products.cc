#include "pmkvq/model/device/device_products.h"

#include "pmkvq/kernels/gemm/device_codes.h"
#include "pmkvq/kernels/gemm/device_gemm_few.h"

namespace pmkvq {
namespace {

int PartsOf(DType type) { return type == DType::kF32 ? 1 : 2; }

// Quantised weights are read as they are for few rows; for many they are expanded.
bool ReadsCodes(const DeviceMatrix& matrix, int64_t rows) {
  return matrix.has_codes() && rows <= kDecodeRows;
}

}  // namespace

void ExpandMatrix(const DeviceMatrix& matrix, std::byte* out, Stream& stream) {
  for (size_t part = 0; part < matrix.num_parts; ++part) {
    const DeviceCodes& codes = matrix.codes[part];
    ExpandCodes(codes, matrix.type, out, stream);
    out += static_cast<size_t>(codes.n * codes.k) * SizeOf(matrix.type);
  }
}

ProductRows DeviceProducts::OperandOf(const DeviceMatrix& matrix, int64_t rows) const {
  return {own_.operand.As<std::byte>(), matrix.type, PartsOf(matrix.type), PartRows(rows)};
}

bool DeviceProducts::MultipliesFew(const DeviceMatrix& matrix, bool are_single) const {
  return are_single && has_few_sequences_ && !matrix.has_codes() &&
         HasFewRowsProduct(matrix.type, matrix.k);
}

// n: of y, or of `gated`.
void DeviceProducts::MultiplyFew(const ProductRows& x, const DeviceMatrix& matrix, int64_t rows,
                                 int64_t n, float* y, const ProductRows& gated) {
  for (int64_t first = 0; first < rows; first += kMostFewRows) {
    MultiplyFewRows({.x = x,
                     .first_row = first,
                     .rows = std::min(kMostFewRows, rows - first),
                     .w = matrix.data,
                     .n = n,
                     .k = matrix.k,
                     .y = y == nullptr ? nullptr : y + first * n,
                     .gated = gated},
                    stream_);
  }
}

ProductSums DeviceProducts::Multiply(const DeviceMatrix& matrix, int64_t rows, bool are_single,
                                     float* sums) {
  return MultiplyRows(OperandOf(matrix, rows), matrix, rows, are_single, sums);
}

ProductSums DeviceProducts::MultiplyRows(const ProductRows& x, const DeviceMatrix& matrix,
                                         int64_t rows, bool are_single, float* sums) {
  if (MultipliesFew(matrix, are_single)) {
    MultiplyFew(x, matrix, rows, matrix.n, sums, {});
    return {sums, 1, rows};
  }
  if (ReadsCodes(matrix, rows)) {
    float* y = sums;
    for (size_t part = 0; part < matrix.num_parts; ++part) {
      MultiplyCodes({.x = x, .w = matrix.codes[part], .y = y, .y_stride = matrix.n, .rows = rows},
                    stream_);
      y += matrix.codes[part].n;
    }
    return {sums, 1, rows};
  }
  const std::byte* weights = matrix.data;
  if (matrix.has_codes()) {
    own_.expanded.Grow(stream_.device(),
                       static_cast<size_t>(matrix.n * matrix.k) * SizeOf(matrix.type));
    weights = own_.expanded.As<std::byte>();
    ExpandMatrix(matrix, own_.expanded.As<std::byte>(), stream_);
  }
  const int64_t part_rows = PartRows(rows);
  const int parts = PartsOf(matrix.type);
  own_.gemm.Multiply({.type = matrix.type,
                      .x = x.data,
                      .w = weights,
                      .y = sums,
                      .rows = parts * part_rows,
                      .n = matrix.n,
                      .k = matrix.k},
                     stream_);
  return {sums, parts, part_rows};
}

ProductSums DeviceProducts::MultiplyMlp(const DeviceBlockWeights& weights, const RowSlice& slice,
                                        float* sums) {
  const int64_t rows = slice.num_rows;
  const int64_t width = weights.down.k;
  ProductRows operand = OperandOf(weights.down, rows);
  if (!weights.has_gelu && MultipliesFew(weights.gate_up, slice.joinable)) {
    // Rows of x are still read while others are done.
    operand.data = own_.gated.As<std::byte>();
    MultiplyFew(OperandOf(weights.gate_up, rows), weights.gate_up, rows, width, nullptr, operand);
  } else {
    const ProductSums gate_up = Multiply(weights.gate_up, rows, slice.joinable, sums);
    const auto gate = weights.has_gelu ? &GeluMulRows : &SiluMulRows;
    gate(gate_up, rows, width, operand, stream_);
  }
  return MultiplyRows(operand, weights.down, rows, slice.joinable, sums);
}

void DeviceProducts::Prepare(const DeviceWeights& weights) {
  const auto prepare = [&](const DeviceMatrix& matrix) {
    if (matrix.data == nullptr) return;
    own_.gemm.Prepare(matrix.type, matrix.n, matrix.k, PartsOf(matrix.type) * kDecodeRows, false,
                      stream_);
  };
  for (int64_t layer = 0; layer < weights.num_blocks(); ++layer) {
    const DeviceBlockWeights& block = weights.block(layer);
    for (const DeviceMatrix* const matrix : {&block.qkv, &block.o, &block.gate_up, &block.down}) {
      prepare(*matrix);
    }
    if (!block.mla) continue;
    prepare(block.mla->q_kv_a);
    prepare(block.mla->q_b);
  }
  prepare(weights.output_head());
}

}  // namespace pmkvq
