#include "pmkvq/model/device/device_blocks.h"

#include <algorithm>

#include "pmkvq/base/check.h"
#include "pmkvq/base/round_up.h"
#include "pmkvq/kernels/device_rows/mla_rows.h"
#include "pmkvq/kernels/routing/device_experts.h"

namespace pmkvq {
namespace {

int PartsOf(DType type) { return type == DType::kF32 ? 1 : 2; }

// The type of experts does not matter: the larger one.
int64_t MostParts(int64_t rows) { return 2 * PartRows(rows); }

}  // namespace

BlockWidths BlockWidthsOf(const ModelConfig& config) {
  BlockWidths widths;
  if (!config.mla) {
    widths.q = widths.out = config.q_dim();
    widths.k = widths.v = config.kv_dim();
    return widths;
  }
  const MlaConfig& mla = *config.mla;
  const int64_t heads = config.num_heads;
  widths.q = heads * (mla.latent + mla.rope_dim);
  widths.k = mla.latent;
  widths.v = mla.rope_dim;
  widths.out = heads * mla.latent;
  const int64_t first = mla.query_rank > 0 ? mla.query_rank : config.q_dim();
  widths.operand = std::max({mla.query_rank, heads * mla.latent, heads * mla.value_dim});
  widths.sums = std::max({first + mla.latent + mla.rope_dim, config.q_dim(), heads * mla.latent,
                          heads * mla.value_dim});
  return widths;
}

ProductRows DeviceBlocks::HeadOperand(const DeviceHeadMatrices& matrices, int64_t rows) const {
  return {own_.operand.As<std::byte>(), matrices.type, PartsOf(matrices.type), PartRows(rows)};
}

DeviceGemm::Batched DeviceBlocks::OfHeads(const DeviceHeadMatrices& matrices, int64_t part_rows,
                                          const std::byte* x, float* y) const {
  DeviceGemm::Batched product;
  product.type = matrices.type;
  product.transpose_b = matrices.is_transposed;
  product.batches = matrices.heads;
  product.m = PartsOf(matrices.type) * part_rows;
  product.n = matrices.n;
  product.k = matrices.k;
  product.a = x;
  product.b = matrices.data;
  product.c = reinterpret_cast<std::byte*>(y);
  product.lda = matrices.heads * matrices.k;
  product.ldb = matrices.is_transposed ? matrices.k : matrices.n;
  product.ldc = matrices.heads * matrices.n;
  product.stride_a = matrices.k;
  product.stride_b = matrices.stride;
  product.stride_c = matrices.n;
  return product;
}

ProductSums DeviceBlocks::MultiplyHeads(const DeviceHeadMatrices& matrices, int64_t rows,
                                        float* sums) {
  const ProductRows x = HeadOperand(matrices, rows);
  own_.gemm.MultiplyBatched(OfHeads(matrices, x.part_rows, x.data, sums), stream_);
  return {sums, x.parts, x.part_rows};
}

void DeviceBlocks::ProjectLatents(const DeviceBlockWeights& weights, const RowSlice& slice,
                                  float* sums) {
  const DeviceMlaWeights& mla = *weights.mla;
  const MlaConfig& config = *config_.mla;
  const int64_t rows = slice.num_rows;
  const int64_t heads = config_.num_heads;
  const auto eps = static_cast<float>(config.norm_eps);
  const BlockWidths widths = BlockWidthsOf(config_);
  const bool has_rank = config.query_rank > 0;
  StackedSums projected;
  projected.sums = products_.Multiply(mla.q_kv_a, rows, slice.joinable, sums);
  projected.width = mla.q_kv_a.n;

  LatentRows latents;
  latents.from = projected;
  latents.from.at = has_rank ? config.query_rank : config_.q_dim();
  latents.rows = rows;
  latents.latent = config.latent;
  latents.weight = mla.kv_a_norm;
  latents.eps = eps;
  latents.rope.rotations = own_.rotations.As<float>() + slice.first_row * config.rope_dim;
  latents.rope.width = config.rope_dim;
  latents.rope.in_pairs = config.rope_in_pairs;
  latents.latents = own_.k.As<float>() + slice.first_row * widths.k;
  latents.rope_keys = own_.v.As<float>() + slice.first_row * widths.v;
  MakeLatentRows(latents, stream_);

  if (has_rank) {
    NormSums(projected, rows, config.query_rank, mla.q_a_norm, eps,
             products_.OperandOf(mla.q_b, rows), stream_);
    projected.sums = products_.Multiply(mla.q_b, rows, slice.joinable, sums);
    projected.width = mla.q_b.n;
  }
  LatentQueryRows queries;
  queries.from = projected;
  queries.rows = rows;
  queries.num_heads = heads;
  queries.nope = config.nope_dim;
  queries.latent = config.latent;
  queries.rope = latents.rope;
  queries.scale = mla.scale;
  queries.nope_rows = HeadOperand(mla.absorb, rows);
  queries.q = own_.q.As<float>() + slice.first_row * widths.q;
  MakeLatentQueries(queries, stream_);
  PutAbsorbedQueries(MultiplyHeads(mla.absorb, rows, sums), rows, heads, config.latent,
                     config.rope_dim, mla.scale, queries.q, stream_);
}

ProductSums DeviceBlocks::ProjectSums(const DeviceBlockWeights& weights, const RowSlice& slice,
                                      float* sums) {
  const DeviceMlaWeights& mla = *weights.mla;
  const int64_t rows = slice.num_rows;
  const int64_t width = BlockWidthsOf(config_).out;
  RoundRows(own_.out.As<float>() + slice.first_row * width, rows, width,
            HeadOperand(mla.values, rows), stream_);
  const ProductSums values = MultiplyHeads(mla.values, rows, sums);
  RoundSums(values, rows, weights.o.k, products_.OperandOf(weights.o, rows), stream_);
  return products_.Multiply(weights.o, rows, slice.joinable, sums);
}

bool DeviceBlocks::TakeExpertMemory(int64_t rows) {
  if (!config_.moe) return false;
  const MoeConfig& moe = *config_.moe;
  const int64_t padded = RoundUpTo(rows, kDecodeRows);
  const int64_t pairs = rows * moe.num_chosen;
  bool has_grown = false;
  const auto take = [&](GrowingBuffer& buffer, size_t num_bytes) {
    has_grown |= buffer.num_bytes() < num_bytes;
    buffer.Grow(stream_.device(), num_bytes);
  };
  RoutingRule rule;
  rule.num_experts = moe.num_experts;
  rule.num_chosen = moe.num_chosen;
  const auto floats = [](int64_t count) { return static_cast<size_t>(count) * sizeof(float); };
  take(own_.expert_input, floats(padded * config_.hidden_size));
  take(own_.router_logits, floats(padded * moe.num_experts));
  take(own_.routing, DeviceRoutingBytes(rule, rows));
  take(own_.expert_operand, floats(MostParts(pairs) * moe.expert_size));
  take(own_.expert_sums, floats(pairs * std::max(2 * moe.expert_size, config_.hidden_size)));
  return has_grown;
}

ProductRows DeviceBlocks::ExpertInput(int64_t rows) const {
  return {own_.expert_input.As<std::byte>(), DType::kF32, 1, RoundUpTo(rows, kDecodeRows)};
}

ProductSums DeviceBlocks::RunExperts(const DeviceBlockWeights& weights, const RowSlice& slice,
                                     float* sums) {
  const DeviceMoeWeights& moe = *weights.moe;
  const RoutingRule& rule = moe.rule;
  const int64_t rows = slice.num_rows;
  const int64_t hidden = config_.hidden_size;
  const int64_t pairs = rows * rule.num_chosen;
  const auto* const input = own_.expert_input.As<const float>();
  auto* const logits = own_.router_logits.As<float>();
  // In pieces of one size, so that a row of a chunk chooses as it does elsewhere.
  for (int64_t row = 0; row < rows; row += kDecodeRows) {
    own_.gemm.Multiply({.type = DType::kF32,
                        .x = reinterpret_cast<const std::byte*>(input + row * hidden),
                        .w = moe.router.data,
                        .y = logits + row * rule.num_experts,
                        .rows = kDecodeRows,
                        .n = rule.num_experts,
                        .k = hidden},
                       stream_);
  }
  const DeviceRouting routing = CutRouting(rule, rows, own_.routing.As<std::byte>());
  RouteOnDevice(rule, moe.router_bias, logits, rows, routing, stream_);

  auto* const results = own_.expert_sums.As<float>();
  const ProductRows of_rows{own_.operand.As<std::byte>(), moe.gate_up.type,
                            PartsOf(moe.gate_up.type), PartRows(rows)};
  RoundRows(input, rows, hidden, of_rows, stream_);
  MultiplyExperts(rule, rows, routing,
                  {of_rows, true, moe.gate_up.data, moe.gate_up.n, hidden, results}, stream_);
  const ProductRows of_pairs{own_.expert_operand.As<std::byte>(), moe.down.type,
                             PartsOf(moe.down.type), PartRows(pairs)};
  const auto gate = weights.has_gelu ? &GeluMulRows : &SiluMulRows;
  gate({results, 1, pairs}, pairs, moe.expert_size, of_pairs, stream_);
  MultiplyExperts(rule, rows, routing,
                  {of_pairs, false, moe.down.data, hidden, moe.expert_size, results}, stream_);
  AddExperts(rule, rows, routing, results, hidden, own_.x.As<float>() + slice.first_row * hidden,
             stream_);
  if (weights.gate_up.n == 0) return {};
  RoundRows(input, rows, hidden, products_.OperandOf(weights.gate_up, rows), stream_);
  return products_.MultiplyMlp(weights, slice, sums);
}

void DeviceBlocks::Prepare(const DeviceWeights& weights) {
  for (int64_t layer = 0; layer < weights.num_blocks(); ++layer) {
    const DeviceBlockWeights& block = weights.block(layer);
    if (block.mla) {
      for (const DeviceHeadMatrices* const matrices : {&block.mla->absorb, &block.mla->values}) {
        own_.gemm.PrepareBatched(OfHeads(*matrices, PartRows(1), nullptr, nullptr), stream_);
      }
    }
    if (block.moe) {
      own_.gemm.Prepare(DType::kF32, block.moe->rule.num_experts, config_.hidden_size, kDecodeRows,
                        false, stream_);
    }
  }
}

}  // namespace pmkvq
