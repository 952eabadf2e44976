#include "pmkvq/model/device/device_profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/kernels/device_rows/device_rows.h"
#include "pmkvq/kernels/gemm/device_gemm.h"
#include "pmkvq/model/device/device_model.h"
#include "pmkvq/model/device/device_workspace.h"
#include "pmkvq/model/device/profile_weights.h"

namespace pmkvq {
namespace {

// Rows of logits held at once.
constexpr int64_t kHeadRows = 512;
constexpr uint64_t kAllFinite = std::numeric_limits<uint64_t>::max();

int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace

// Activations of one block that its gradient reads.
struct ProfileBlockMemory {
  GrowingBuffer input;           // [rows, E]
  GrowingBuffer middle;          // [rows, E], between attention and MLP.
  GrowingBuffer qkv;             // [rows, (H + 2 Hkv) D], kept where heads have norms.
  GrowingBuffer q, k, v;         // Grouped heads.
  GrowingBuffer gate_up;         // [rows, 2 F]
  GrowingBuffer qkv_scales;      // [rows]
  GrowingBuffer gate_up_scales;  // [rows]
};

struct DeviceProfile::Impl {
  explicit Impl(const Model& profiled)
      : model(profiled),
        config(profiled.config()),
        device(profiled.device()),
        weights(profiled.device_model()->weights()),
        stream(device),
        gemm(device),
        matrices(config, weights, stream) {}

  const Model& model;
  const ModelConfig& config;
  const DeviceId device;
  const DeviceWeights& weights;
  Stream stream;
  DeviceGemm gemm;
  ProfileWeights matrices;
  std::unique_ptr<SequenceAttention> attention;

  int64_t num_tokens = 0;
  int64_t rows = 0;
  int parts = 1;  // Of operands.
  bool is_fast = false;
  bool keeps_blocks = false;

  GrowingBuffer ids;        // int32 [rows]
  GrowingBuffer positions;  // int32 [rows]
  GrowingBuffer targets;    // int32 [rows]
  GrowingBuffer rotations;  // [rows, D/2, 2]
  GrowingBuffer x;          // [rows, E]
  GrowingBuffer dx;         // [rows, E]
  GrowingBuffer operand;
  GrowingBuffer scales;  // [2, rows], of operands in turn.
  GrowingBuffer narrow;  // [rows, max(E, H D)], what products give.
  GrowingBuffer wide;    // [rows, F]
  GrowingBuffer q16, k16, v16, inverses;
  GrowingBuffer out;  // [Hkv, rows, G, D], attention; backward its gradient.
  GrowingBuffer dq, dk, dv;
  GrowingBuffer logits;     // [kHeadRows, V]
  GrowingBuffer dlogits;    // The operand of their gradient.
  GrowingBuffer losses;     // double [rows + 1]
  GrowingBuffer first_bad;  // uint64
  std::vector<ProfileBlockMemory> blocks;
  ScaledSums mlp_sums;  // Of the block before, not yet added to x.
  int turn = 0;

  ProfileBlockMemory& BlockOf(int64_t layer) {
    return blocks[keeps_blocks ? static_cast<size_t>(layer) : 0];
  }
  FiniteCheck Check(int64_t step) const {
    return {first_bad.As<uint64_t>(), static_cast<uint32_t>(step)};
  }

  void Take(GrowingBuffer& buffer, int64_t floats) {
    buffer.Grow(device, static_cast<size_t>(floats) * sizeof(float));
  }
  void TakeMemory(bool with_loss);
  void Start(std::span<const int32_t> tokens, std::span<const int64_t> token_positions,
             bool with_loss);
  ScaledRows Operand(DType type, int operand_parts, float* row_scales);
  ScaledRows Operand(DType type, int operand_parts) {
    turn ^= 1;
    return Operand(type, operand_parts, scales.As<float>() + turn * rows);
  }
  int PartsFor(DType type) const { return type == DType::kF32 ? 1 : parts; }
  ScaledRows ForwardOperand(const ProfileMatrix& matrix) {
    return Operand(matrix.type, PartsFor(matrix.type));
  }
  ScaledSums Multiply(const ProfileMatrix& matrix, const ScaledRows& x_rows, int64_t num_rows,
                      float* y);
  ScaledSums MultiplyGrad(const ProfileMatrix& matrix, const ScaledRows& dy, int64_t num_rows,
                          float* dx_out);
  SequenceHeadShape HeadShape(int64_t layer) const;
  DeviceBlockStates StatesOf(int64_t layer);

  void RunBlock(int64_t layer, bool is_last_without_loss, const Visitor& visitor);
  void Attend(ProfileBlockMemory& block, DeviceBlockStates& states);
  void Head(bool with_gradient);
  void BackBlock(int64_t layer, ScaledRows& dx_rows, const Visitor& visitor);
  double Finish(bool with_loss);
  [[noreturn]] void ThrowNotFinite(uint64_t found) const;
};

void DeviceProfile::Impl::TakeMemory(bool with_loss) {
  const int64_t hidden = config.hidden_size;
  const int64_t inner = config.intermediate_size;
  const int64_t stacked = config.q_dim() + 2 * config.kv_dim();
  const int64_t group_rows = rows * config.num_heads;
  for (GrowingBuffer* buffer : {&ids, &positions, &targets}) Take(*buffer, rows);
  Take(rotations, rows * config.head_dim);
  Take(x, rows * hidden);
  // Two parts of F16, or one of F32; gradients have one part of F16.
  Take(operand, rows * std::max({hidden, config.q_dim(), stacked,
                                 matrices.has_floats() ? 2 * inner : inner}));
  Take(scales, 2 * rows);
  Take(narrow, rows * std::max(hidden, config.q_dim()));
  Take(out, rows * config.q_dim());
  Take(inverses, group_rows);
  if (is_fast) {
    Take(q16, rows * config.q_dim() / 2);
    Take(k16, rows * config.kv_dim() / 2);
    Take(v16, rows * config.kv_dim() / 2);
  }
  if (with_loss) {
    Take(logits, std::min(kHeadRows, rows) * config.vocab_size);
    losses.Grow(device, static_cast<size_t>(rows + 1) * sizeof(double));
  }
  if (keeps_blocks) {
    Take(dx, rows * hidden);
    Take(wide, rows * inner);
    Take(dq, rows * config.q_dim());
    Take(dk, rows * config.kv_dim());
    Take(dv, rows * config.kv_dim());
    if (matrices.head().type != DType::kF32) {
      Take(dlogits, std::min(kHeadRows, rows) * config.vocab_size / 2 + 1);
    }
  }
  first_bad.Grow(device, sizeof(uint64_t));
  const auto num_kept = keeps_blocks ? static_cast<size_t>(config.num_layers) : 1;
  if (blocks.size() < num_kept) blocks = std::vector<ProfileBlockMemory>(num_kept);
  for (ProfileBlockMemory& block : std::span(blocks).first(num_kept)) {
    if (keeps_blocks) Take(block.input, rows * hidden);
    if (keeps_blocks) Take(block.middle, rows * hidden);
    Take(block.qkv, rows * stacked);
    Take(block.q, rows * config.q_dim());
    Take(block.k, rows * config.kv_dim());
    Take(block.v, rows * config.kv_dim());
    Take(block.gate_up, rows * 2 * inner);
    Take(block.qkv_scales, rows);
    Take(block.gate_up_scales, rows);
  }
}

// Memory of a sequence's shape, its tokens and their embedding.
void DeviceProfile::Impl::Start(std::span<const int32_t> tokens,
                                std::span<const int64_t> token_positions, bool with_loss) {
  PMKVQ_CHECK(tokens.size() >= 2 && tokens.size() == token_positions.size());
  num_tokens = std::ssize(tokens);
  const int64_t new_rows = RoundUp(num_tokens, 64);
  if (attention == nullptr || new_rows != rows) {
    attention.reset();
    attention = std::make_unique<SequenceAttention>(
        device,
        SequenceAttentionShape{new_rows, config.num_heads, config.num_kv_heads, config.head_dim,
                               static_cast<float>(model.attention_scale())});
  }
  rows = new_rows;
  TakeMemory(with_loss);
  std::vector<int32_t> host(static_cast<size_t>(3 * rows), 0);
  const auto at = [&](int64_t part, int64_t t) -> int32_t& {
    return host[static_cast<size_t>(part * rows + t)];
  };
  for (int64_t t = 0; t < rows; ++t) at(2, t) = -1;
  for (int64_t t = 0; t < num_tokens; ++t) {
    const int32_t token = tokens[static_cast<size_t>(t)];
    PMKVQ_CHECK_MSG(token >= 0 && token < config.vocab_size, "token id out of range");
    at(0, t) = token;
    at(1, t) = static_cast<int32_t>(token_positions[static_cast<size_t>(t)]);
    if (t > 0) at(2, t - 1) = token;
  }
  const auto bytes = static_cast<size_t>(rows) * sizeof(int32_t);
  CopyToDevice(stream, ids.As<std::byte>(), &at(0, 0), bytes);
  CopyToDevice(stream, positions.As<std::byte>(), &at(1, 0), bytes);
  CopyToDevice(stream, targets.As<std::byte>(), &at(2, 0), bytes);
  stream.Synchronize();
  FillOnDevice(stream, first_bad.As<std::byte>(), 0xff, sizeof(uint64_t));
  EmbedRows(weights.embedding().data, weights.embedding().type, ids.As<int32_t>(), rows,
            config.hidden_size, x.As<float>(), stream, 1.0f,
            {positions.As<int32_t>(), weights.frequencies(), config.head_dim / 2,
             model.device_model()->rope_factor(), rotations.As<float>()});
  mlp_sums = {};
}

ScaledRows DeviceProfile::Impl::Operand(DType type, int operand_parts, float* row_scales) {
  return {operand.As<std::byte>(), type, operand_parts, rows, row_scales};
}

// y = x W^T, the parts of x one after the other.
ScaledSums DeviceProfile::Impl::Multiply(const ProfileMatrix& matrix, const ScaledRows& x_rows,
                                         int64_t num_rows, float* y) {
  DeviceBatchedProduct p;
  p.type = matrix.type;
  p.transpose_b = true;
  p.batches = 1;
  p.m = num_rows;
  p.n = matrix.n;
  p.k = matrix.k;
  p.lda = p.ldb = matrix.k;
  p.ldc = matrix.n;
  p.b = matrix.data;
  p.c = reinterpret_cast<std::byte*>(y);
  p.alpha = matrix.factor;
  const size_t part_bytes = static_cast<size_t>(x_rows.part_rows * matrix.k) * SizeOf(matrix.type);
  for (int part = 0; part < x_rows.parts; ++part) {
    p.a = x_rows.data + static_cast<size_t>(part) * part_bytes;
    p.beta = part == 0 ? 0.0f : 1.0f;
    gemm.MultiplyBatched(p, stream);
  }
  return {y, x_rows.scales};
}

// dx = dy W, of one part.
ScaledSums DeviceProfile::Impl::MultiplyGrad(const ProfileMatrix& matrix, const ScaledRows& dy,
                                             int64_t num_rows, float* dx_out) {
  DeviceBatchedProduct p;
  p.type = matrix.type;
  p.batches = 1;
  p.m = num_rows;
  p.n = matrix.k;
  p.k = matrix.n;
  p.lda = matrix.n;
  p.ldb = p.ldc = matrix.k;
  p.a = dy.data;
  p.b = matrix.data;
  p.c = reinterpret_cast<std::byte*>(dx_out);
  p.alpha = matrix.factor;
  gemm.MultiplyBatched(p, stream);
  return {dx_out, dy.scales};
}

SequenceHeadShape DeviceProfile::Impl::HeadShape(int64_t layer) const {
  const DeviceBlockWeights& block = weights.block(layer);
  SequenceHeadShape shape;
  shape.rows = rows;
  shape.num_heads = config.num_heads;
  shape.num_kv_heads = config.num_kv_heads;
  shape.head_dim = config.head_dim;
  shape.bias = block.qkv_bias;
  shape.q_norm = block.q_norm;
  shape.k_norm = block.k_norm;
  shape.eps = static_cast<float>(config.rms_norm_eps);
  shape.rotations = rotations.As<float>();
  return shape;
}

DeviceBlockStates DeviceProfile::Impl::StatesOf(int64_t layer) {
  const ProfileBlockMemory& block = BlockOf(layer);
  DeviceBlockStates states;
  states.layer = layer;
  states.num_tokens = num_tokens;
  states.rows = rows;
  states.q = block.q.As<float>();
  states.k = block.k.As<float>();
  states.v = block.v.As<float>();
  return states;
}

void DeviceProfile::Impl::Attend(ProfileBlockMemory& block, DeviceBlockStates& states) {
  states.attention.data = out.As<float>();
  if (!is_fast) {
    attention->Forward(states.q, states.k, states.v, out.As<float>(), gemm, stream);
    return;
  }
  const auto round = [&](const GrowingBuffer& from, int64_t width, const GrowingBuffer& to) {
    RoundRows(from.As<float>(), rows, width, {to.As<std::byte>(), DType::kF16, 1, rows}, stream);
  };
  round(block.q, config.q_dim(), q16);
  round(block.k, config.kv_dim(), k16);
  round(block.v, config.kv_dim(), v16);
  attention->ForwardF16(q16.As<std::byte>(), k16.As<std::byte>(), v16.As<std::byte>(),
                        out.As<float>(), inverses.As<float>(), gemm, stream);
  states.q16 = q16.As<std::byte>();
  states.attention.inverses = inverses.As<float>();
}

void DeviceProfile::Impl::RunBlock(int64_t layer, bool is_last_without_loss,
                                   const Visitor& visitor) {
  const DeviceBlockWeights& block_weights = weights.block(layer);
  const ProfileBlockMatrices& block_matrices = matrices.block(layer);
  ProfileBlockMemory& block = BlockOf(layer);
  const int64_t hidden = config.hidden_size;
  const auto keep = [&](const GrowingBuffer& to) {
    if (!keeps_blocks) return;
    CopyOnDevice(stream, to.As<std::byte>(), x.As<const std::byte>(),
                 static_cast<size_t>(rows * hidden) * sizeof(float));
  };

  SequenceNorm norm;
  norm.x = x.As<float>();
  norm.rows = rows;
  norm.width = hidden;
  norm.sums = mlp_sums;
  norm.weight = block_weights.attn_norm;
  norm.eps = static_cast<float>(config.rms_norm_eps);
  norm.out = Operand(block_matrices.qkv.type, PartsFor(block_matrices.qkv.type),
                     block.qkv_scales.As<float>());
  norm.check = Check(layer);
  AddAndNormSequence(norm, stream);
  keep(block.input);
  const ScaledSums qkv = Multiply(block_matrices.qkv, norm.out, rows, block.qkv.As<float>());
  MakeSequenceHeads(HeadShape(layer), qkv, block.q.As<float>(), block.k.As<float>(),
                    block.v.As<float>(), stream);

  DeviceBlockStates states = StatesOf(layer);
  Attend(block, states);
  if (visitor) visitor(states);
  if (is_last_without_loss) return;

  const ScaledRows attended = ForwardOperand(block_matrices.o);
  GatherHeads(HeadShape(layer), states.attention, {}, attended, stream);
  norm.sums = Multiply(block_matrices.o, attended, rows, narrow.As<float>());
  norm.bias = block_weights.o_bias;
  norm.weight = block_weights.mlp_norm;
  norm.out = Operand(block_matrices.gate_up.type, PartsFor(block_matrices.gate_up.type),
                     block.gate_up_scales.As<float>());
  norm.check = Check(layer + 1);
  AddAndNormSequence(norm, stream);
  keep(block.middle);
  const ScaledSums gate_up =
      Multiply(block_matrices.gate_up, norm.out, rows, block.gate_up.As<float>());
  const ScaledRows inner = ForwardOperand(block_matrices.down);
  SiluMulSequence(gate_up, rows, config.intermediate_size, inner, stream);
  mlp_sums = Multiply(block_matrices.down, inner, rows, narrow.As<float>());
}

// Losses of all rows; with gradient, `narrow` becomes that of the norm's output, and dx that of x.
void DeviceProfile::Impl::Head(bool with_gradient) {
  const ProfileMatrix& head = matrices.head();
  SequenceNorm norm;
  norm.x = x.As<float>();
  norm.rows = rows;
  norm.width = config.hidden_size;
  norm.sums = mlp_sums;
  norm.weight = weights.final_norm();
  norm.eps = static_cast<float>(config.rms_norm_eps);
  norm.out = ForwardOperand(head);
  norm.check = Check(config.num_layers);
  AddAndNormSequence(norm, stream);
  const auto weight = static_cast<float>(1.0 / static_cast<double>(num_tokens - 1));
  float* const gradient_scales = scales.As<float>() + (turn ^ 1) * rows;
  for (int64_t first = 0; first < rows; first += kHeadRows) {
    const int64_t count = std::min(kHeadRows, rows - first);
    ScaledRows slice = norm.out;
    slice.data += static_cast<size_t>(first * head.k) * SizeOf(head.type);
    slice.scales += first;
    const ScaledSums sums = Multiply(head, slice, count, logits.As<float>());
    ScaledRows gradient;
    if (with_gradient) {
      gradient = {head.type == DType::kF32 ? logits.As<std::byte>() : dlogits.As<std::byte>(),
                  head.type, 1, count, gradient_scales + first};
    }
    SequenceCrossEntropy(sums, targets.As<int32_t>() + first, count, config.vocab_size, weight,
                         losses.As<double>() + first, gradient, stream);
    if (with_gradient) {
      MultiplyGrad(head, gradient, count, narrow.As<float>() + first * config.hidden_size);
    }
  }
  SumDoubles(losses.As<double>(), rows, 0, 1, losses.As<double>() + rows, stream);
}

// dx_rows: the operand of dx, before and after.
void DeviceProfile::Impl::BackBlock(int64_t layer, ScaledRows& dx_rows, const Visitor& visitor) {
  const DeviceBlockWeights& block_weights = weights.block(layer);
  const ProfileBlockMatrices& block_matrices = matrices.block(layer);
  const ProfileBlockMemory& block = BlockOf(layer);
  const ScaledSums dinner = MultiplyGrad(block_matrices.down, dx_rows, rows, wide.As<float>());
  const ScaledRows dgate_up = Operand(block_matrices.gate_up.type, 1);
  SiluMulSequenceGrad({block.gate_up.As<float>(), block.gate_up_scales.As<float>()}, dinner, rows,
                      config.intermediate_size, dgate_up, stream);
  SequenceNormGrad grad;
  grad.x = block.middle.As<float>();
  grad.rows = rows;
  grad.width = config.hidden_size;
  grad.dy = MultiplyGrad(block_matrices.gate_up, dgate_up, rows, narrow.As<float>());
  grad.weight = block_weights.mlp_norm;
  grad.eps = static_cast<float>(config.rms_norm_eps);
  grad.dx = dx.As<float>();
  grad.out = Operand(block_matrices.o.type, 1);
  AddNormGrad(grad, stream);

  const SequenceHeadShape shape = HeadShape(layer);
  ScatterHeads(shape, MultiplyGrad(block_matrices.o, grad.out, rows, narrow.As<float>()),
               out.As<float>(), stream);
  attention->Backward({.q = block.q.As<float>(),
                       .k = block.k.As<float>(),
                       .v = block.v.As<float>(),
                       .dout = out.As<float>(),
                       .dq = dq.As<float>(),
                       .dk = dk.As<float>(),
                       .dv = dv.As<float>(),
                       .allow_tf32 = block_matrices.qkv.type != DType::kF32},
                      gemm, stream);
  if (visitor) {
    DeviceBlockStates states = StatesOf(layer);
    states.dk = dk.As<float>();
    states.dv = dv.As<float>();
    visitor(states);
  }
  if (layer == 0) return;
  const ScaledRows dqkv = Operand(block_matrices.qkv.type, 1);
  SequenceHeadsGrad(shape, {block.qkv.As<float>(), block.qkv_scales.As<float>()}, dq.As<float>(),
                    dk.As<float>(), dv.As<float>(), dqkv, stream);
  grad.x = block.input.As<float>();
  grad.dy = MultiplyGrad(block_matrices.qkv, dqkv, rows, narrow.As<float>());
  grad.weight = block_weights.attn_norm;
  grad.out = dx_rows = Operand(matrices.block(layer - 1).down.type, 1);
  grad.check = Check(2 * config.num_layers + 1 - layer);
  AddNormGrad(grad, stream);
}

// Waits.
double DeviceProfile::Impl::Finish(bool with_loss) {
  double sum = 0.0;
  uint64_t found = kAllFinite;
  if (with_loss) {
    CopyToHost(stream, &sum, reinterpret_cast<const std::byte*>(losses.As<const double>() + rows),
               sizeof(sum));
  }
  CopyToHost(stream, &found, first_bad.As<const std::byte>(), sizeof(found));
  stream.Synchronize();
  // The loss lies between the passes.
  const auto step = static_cast<int64_t>(found >> 32);
  if (found != kAllFinite && step <= config.num_layers) ThrowNotFinite(found);
  const double loss = sum / static_cast<double>(num_tokens - 1);
  if (!std::isfinite(loss)) {
    throw InvalidInput(model.checkpoint().folder(),
                       fmt::format("output head: found loss {}, expected a finite value (NaN or "
                                   "infinity among the weights)",
                                   loss));
  }
  if (found != kAllFinite) ThrowNotFinite(found);
  return loss;
}

void DeviceProfile::Impl::ThrowNotFinite(uint64_t found) const {
  const auto step = static_cast<int64_t>(found >> 32);
  const auto token = static_cast<int64_t>(found & 0xffffffffu);
  const std::string where =
      step == 0 ? std::string("embedding")
      : step <= config.num_layers
          ? fmt::format("block {}", step - 1)
          : fmt::format("gradient of block {}", 2 * config.num_layers + 1 - step);
  throw InvalidInput(model.checkpoint().folder(),
                     fmt::format("{}: found a value that is not finite at token {}, expected "
                                 "finite values (NaN or infinity among the weights)",
                                 where, token));
}

namespace {

// What configs may ask for beyond the steps that there are.
void CheckFamily(const ModelConfig& config, DeviceId device) {
  const auto refuse = [&](const char* what) {
    throw Unsupported(NameOf(device),
                      fmt::format("calibration of {}: found {}, for which there is no gradient on "
                                  "a device; use --device cpu",
                                  config.architecture, what));
  };
  if (config.mla) refuse("latent attention");
  if (config.moe) refuse("a mixture of experts");
  if (config.post_norms) refuse("norms behind attention and MLP");
  if (config.activation != GateActivation::kSilu) refuse("a GELU in the MLP");
  if (config.embedding_factor != 1.0) refuse("a factor of the embedding");
  if (config.local_rope.has_value()) refuse("blocks with another RoPE");
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    if (config.sliding_window(layer) != 0) refuse("sliding windows");
  }
}

}  // namespace

DeviceProfile::DeviceProfile(const Model& model) {
  PMKVQ_CHECK_MSG(model.device_model() != nullptr, "the model lies on the CPU");
  CheckFamily(model.config(), model.device());
  impl_ = std::make_unique<Impl>(model);
}

DeviceProfile::~DeviceProfile() = default;

double DeviceProfile::Forward(std::span<const int32_t> tokens, std::span<const int64_t> positions,
                              Precision precision, bool with_loss, const Visitor& visitor) {
  Impl& impl = *impl_;
  impl.is_fast = precision == Precision::kFast && !impl.matrices.has_floats();
  impl.parts = precision == Precision::kFast ? 1 : 2;
  impl.keeps_blocks = false;
  impl.Start(tokens, positions, with_loss);
  const int64_t num_layers = impl.config.num_layers;
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    impl.RunBlock(layer, !with_loss && layer == num_layers - 1, visitor);
  }
  if (with_loss) impl.Head(/*with_gradient=*/false);
  return impl.Finish(with_loss);
}

double DeviceProfile::ForwardBackward(std::span<const int32_t> tokens,
                                      std::span<const int64_t> positions,
                                      const Visitor& forward_visitor, const Visitor& visitor) {
  Impl& impl = *impl_;
  impl.is_fast = false;
  impl.parts = 2;
  impl.keeps_blocks = true;
  impl.Start(tokens, positions, /*with_loss=*/true);
  const int64_t num_layers = impl.config.num_layers;
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    impl.RunBlock(layer, false, forward_visitor);
  }
  impl.Head(/*with_gradient=*/true);
  FillOnDevice(impl.stream, impl.dx.As<std::byte>(), 0,
               static_cast<size_t>(impl.rows * impl.config.hidden_size) * sizeof(float));
  SequenceNormGrad grad;
  grad.x = impl.x.As<float>();
  grad.rows = impl.rows;
  grad.width = impl.config.hidden_size;
  impl.turn ^= 1;  // The head has written the gradient's scales there.
  grad.dy = {impl.narrow.As<float>(), impl.scales.As<float>() + impl.turn * impl.rows};
  grad.weight = impl.weights.final_norm();
  grad.eps = static_cast<float>(impl.config.rms_norm_eps);
  grad.dx = impl.dx.As<float>();
  ScaledRows dx_rows = grad.out =
      impl.Operand(impl.matrices.block(num_layers - 1).down.type, /*operand_parts=*/1);
  AddNormGrad(grad, impl.stream);
  for (int64_t layer = num_layers - 1; layer >= 0; --layer) {
    impl.BackBlock(layer, dx_rows, visitor);
  }
  return impl.Finish(/*with_loss=*/true);
}

Stream& DeviceProfile::stream() { return impl_->stream; }
DeviceGemm& DeviceProfile::gemm() { return impl_->gemm; }
SequenceAttention& DeviceProfile::attention() { return *impl_->attention; }
SequenceHeadShape DeviceProfile::head_shape() const { return impl_->HeadShape(0); }

DType DeviceProfile::ProjectionType(int64_t layer) const {
  return impl_->matrices.block(layer).o.type;
}

void DeviceProfile::ProjectAttention(int64_t layer, const ScaledRows& attention, int64_t rows,
                                     float* out) {
  PMKVQ_CHECK(attention.parts == 1);
  static_cast<void>(impl_->Multiply(impl_->matrices.block(layer).o, attention, rows, out));
}

int64_t DeviceProfile::num_bytes() const {
  const Impl& impl = *impl_;
  size_t bytes = impl.matrices.num_bytes();
  for (const GrowingBuffer* buffer :
       {&impl.ids,     &impl.positions, &impl.targets, &impl.rotations, &impl.x,   &impl.dx,
        &impl.operand, &impl.scales,    &impl.narrow,  &impl.wide,      &impl.q16, &impl.k16,
        &impl.v16,     &impl.inverses,  &impl.out,     &impl.dq,        &impl.dk,  &impl.dv,
        &impl.logits,  &impl.dlogits,   &impl.losses}) {
    bytes += buffer->num_bytes();
  }
  for (const ProfileBlockMemory& block : impl.blocks) {
    for (const GrowingBuffer* buffer :
         {&block.input, &block.middle, &block.qkv, &block.q, &block.k, &block.v, &block.gate_up}) {
      bytes += buffer->num_bytes();
    }
  }
  if (impl.attention != nullptr) bytes += impl.attention->num_bytes();
  return static_cast<int64_t>(bytes);
}

}  // namespace pmkvq
