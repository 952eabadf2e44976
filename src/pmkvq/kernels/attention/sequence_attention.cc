#include "pmkvq/kernels/attention/sequence_attention.h"

#include <algorithm>

#include "pmkvq/base/check.h"

namespace pmkvq {
namespace {

// Rows of queries at once: 62 % of all products of 2,048 rows are computed, and a tile's launches
// are long enough to hide those of the next one.
constexpr int64_t kTileRows = 512;
constexpr float kLog2E = 1.44269504f;

const std::byte* Bytes(const float* p) { return reinterpret_cast<const std::byte*>(p); }
std::byte* Bytes(float* p) { return reinterpret_cast<std::byte*>(p); }

}  // namespace

// Tokens first .. end - 1, which see columns 0 .. end - 1.
struct SequenceAttention::Tile {
  int64_t first = 0;
  int64_t end = 0;

  int64_t tokens() const { return end - first; }
};

SequenceAttention::SequenceAttention(DeviceId device, const SequenceAttentionShape& shape)
    : shape_(shape),
      tile_rows_(std::min(kTileRows, shape.rows)),
      scores_(device,
              static_cast<size_t>(shape.num_heads * tile_rows_ * shape.rows) * sizeof(float)),
      weights_(device,
               static_cast<size_t>(shape.num_heads * tile_rows_ * shape.rows) * sizeof(float)) {
  PMKVQ_CHECK(shape.rows > 0 && shape.rows % 64 == 0);
  PMKVQ_CHECK(shape.num_heads % shape.num_kv_heads == 0 && shape.head_dim % 8 == 0);
}

// Scores of a tile, times log2(e).
DeviceBatchedProduct SequenceAttention::ScoresOf(const Tile& tile, DType type, const std::byte* q,
                                                 const std::byte* k) const {
  const int64_t dim = shape_.head_dim;
  const int64_t group = shape_.group();
  DeviceBatchedProduct p;
  p.type = type;
  p.transpose_b = true;
  p.batches = shape_.num_kv_heads;
  p.m = tile.tokens() * group;
  p.n = tile.end;
  p.k = dim;
  p.a = q + static_cast<size_t>(tile.first * group * dim) * SizeOf(type);
  p.lda = dim;
  p.stride_a = shape_.rows * group * dim;
  p.b = k;
  p.ldb = shape_.num_kv_heads * dim;
  p.stride_b = dim;
  p.c = scores_.data();
  p.ldc = tile.end;
  p.stride_c = p.m * p.n;
  p.alpha = shape_.scale * kLog2E;
  return p;
}

// Of scores in float, to weights in their place.
internal::SequenceWeights SequenceAttention::WeightsOf(const Tile& tile) const {
  return {.scores = reinterpret_cast<float*>(scores_.data()),
          .heads = shape_.num_kv_heads,
          .rows = shape_.rows,
          .first_token = tile.first,
          .tokens = tile.tokens(),
          .group = shape_.group(),
          .columns = tile.end};
}

// out of a tile = weights * V.
DeviceBatchedProduct SequenceAttention::OutputOf(const Tile& tile,
                                                 const DeviceBatchedProduct& scores,
                                                 const std::byte* weights, const std::byte* v,
                                                 float* out) const {
  const int64_t dim = shape_.head_dim;
  const int64_t group = shape_.group();
  DeviceBatchedProduct p;
  p.type = scores.type;
  p.batches = shape_.num_kv_heads;
  p.m = scores.m;
  p.n = dim;
  p.k = tile.end;
  p.a = weights;
  p.lda = tile.end;
  p.stride_a = scores.stride_c;
  p.b = v;
  p.ldb = shape_.num_kv_heads * dim;
  p.stride_b = dim;
  p.c = Bytes(out + tile.first * group * dim);
  p.ldc = dim;
  p.stride_c = shape_.rows * group * dim;
  return p;
}

void SequenceAttention::Forward(const float* q, const float* k, const float* v, float* out,
                                DeviceGemm& gemm, Stream& stream) {
  for (int64_t first = 0; first < shape_.rows; first += tile_rows_) {
    const Tile tile{first, std::min(first + tile_rows_, shape_.rows)};
    const DeviceBatchedProduct scores = ScoresOf(tile, DType::kF32, Bytes(q), Bytes(k));
    gemm.MultiplyBatched(scores, stream);
    internal::WeighSequence(WeightsOf(tile), stream);
    gemm.MultiplyBatched(OutputOf(tile, scores, scores_.data(), Bytes(v), out), stream);
  }
}

void SequenceAttention::ForwardF16(const std::byte* q, const std::byte* k, const std::byte* v,
                                   float* out, float* inverses, DeviceGemm& gemm, Stream& stream) {
  for (int64_t first = 0; first < shape_.rows; first += tile_rows_) {
    const Tile tile{first, std::min(first + tile_rows_, shape_.rows)};
    const DeviceBatchedProduct scores = ScoresOf(tile, DType::kF16, q, k);
    gemm.MultiplyBatched(scores, stream);
    internal::SequenceWeights weights = WeightsOf(tile);
    weights.f16 = weights_.data();
    weights.inverses = inverses + first * shape_.group();
    internal::WeighSequence(weights, stream);
    gemm.MultiplyBatched(OutputOf(tile, scores, weights_.data(), v, out), stream);
  }
}

// With dS = P (dP - sum(P dP)), dP = dO V^T:  dQ = scale dS K,  dK = scale dS^T Q,  dV = P^T dO.
// The last tile comes first: it reaches all keys, and the others add to what it wrote.
void SequenceAttention::Backward(const Gradient& op, DeviceGemm& gemm, Stream& stream) {
  const int64_t dim = shape_.head_dim;
  const int64_t group = shape_.group();
  const int64_t kv_dim = shape_.num_kv_heads * dim;
  const int64_t num_tiles = (shape_.rows + tile_rows_ - 1) / tile_rows_;
  auto* const products = reinterpret_cast<float*>(weights_.data());
  for (int64_t index = num_tiles - 1; index >= 0; --index) {
    const int64_t first = index * tile_rows_;
    const Tile tile{first, std::min(first + tile_rows_, shape_.rows)};
    const int64_t tile_offset = first * group * dim;
    DeviceBatchedProduct scores = ScoresOf(tile, DType::kF32, Bytes(op.q), Bytes(op.k));
    scores.allow_tf32 = op.allow_tf32;
    gemm.MultiplyBatched(scores, stream);
    const internal::SequenceWeights weights = WeightsOf(tile);
    internal::WeighSequence(weights, stream);
    DeviceBatchedProduct p = scores;  // dP
    p.a = Bytes(op.dout + tile_offset);
    p.b = Bytes(op.v);
    p.c = Bytes(products);
    p.alpha = 1.0f;
    gemm.MultiplyBatched(p, stream);
    internal::SequenceScoresGrad(weights, weights.scores, products, stream);

    p.transpose_b = false;  // dQ
    p.n = dim;
    p.k = tile.end;
    p.a = Bytes(products);
    p.lda = tile.end;
    p.stride_a = scores.stride_c;
    p.b = Bytes(op.k);
    p.c = Bytes(op.dq + tile_offset);
    p.ldc = dim;
    p.stride_c = shape_.rows * group * dim;
    p.alpha = shape_.scale;
    gemm.MultiplyBatched(p, stream);

    p.transpose_a = true;  // dK
    p.m = tile.end;
    p.k = tile.tokens() * group;
    p.b = Bytes(op.q + tile_offset);
    p.ldb = dim;
    p.stride_b = shape_.rows * group * dim;
    p.c = Bytes(op.dk);
    p.ldc = kv_dim;
    p.stride_c = dim;
    p.beta = index == num_tiles - 1 ? 0.0f : 1.0f;
    gemm.MultiplyBatched(p, stream);

    p.a = scores_.data();  // dV
    p.b = Bytes(op.dout + tile_offset);
    p.c = Bytes(op.dv);
    p.alpha = 1.0f;
    gemm.MultiplyBatched(p, stream);
  }
}

}  // namespace pmkvq
