// The weights of a model in the memory of a device, as its Forward reads them: matrices that
// multiply the same rows are stacked, so that a block has four products.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <optional>
#include <vector>

#include "pmkvq/kernels/gemm/device_codes_layout.h"
#include "pmkvq/kernels/rope/rope.h"
#include "pmkvq/kernels/routing/routing.h"
#include "pmkvq/model/model_impl.h"
#include "pmkvq/tensor/device/buffer.h"
#include "pmkvq/tensor/dtype.h"

namespace pmkvq {

class AttentionGqa;
class AttentionMla;
class MlpDense;
class MlpMoe;

struct DeviceMatrix {
  std::byte* data = nullptr;  // [n, k]; null where there are codes.
  DType type = DType::kBF16;  // kF16, kBF16 or kF32; of codes, kF16, to which they are expanded.
  // Quantised weights, one behind the other in the rows of the matrix: as many parts as there are
  // formats side by side (files of mixed formats keep v finer than q and k).
  static constexpr size_t kMostParts = 3;
  std::array<DeviceCodes, kMostParts> codes = {};
  size_t num_parts = 0;
  int64_t n = 0;
  int64_t k = 0;

  bool has_codes() const { return num_parts > 0; }
};

// A matrix of each head, in one weight: rows x [k] of a head become rows of n values.
struct DeviceHeadMatrices {
  const std::byte* data = nullptr;
  DType type = DType::kBF16;
  bool is_transposed = false;  // [n, k], else [k, n].
  int64_t heads = 0;
  int64_t n = 0;
  int64_t k = 0;
  int64_t stride = 0;  // Elements from one head's to the next.
};

// Of latent attention (model/blocks/attention_mla.h), beside DeviceBlockWeights.
struct DeviceMlaWeights {
  DeviceMatrix q_kv_a;               // q, or q_a, then kv_a: [.., E]
  const float* q_a_norm = nullptr;   // [rank]; null without a rank of queries.
  DeviceMatrix q_b;                  // [H (dn + dr), rank], with one.
  const float* kv_a_norm = nullptr;  // [r]
  DeviceHeadMatrices absorb;         // From q_nope [dn] to latents [r].
  DeviceHeadMatrices values;         // From latents [r] to values [dv].
  float scale = 1.0f;                // Of scores.
};

// Of a mixture of experts (model/blocks/mlp_moe.h). The shared one is gate_up and down of
// DeviceBlockWeights.
struct DeviceMoeWeights {
  DeviceMatrix router;                 // [n, E], F32
  const float* router_bias = nullptr;  // [n]
  DeviceMatrix gate_up;                // n matrices [2 F, E] behind each other
  DeviceMatrix down;                   // n matrices [E, F]
  RoutingRule rule;
  int64_t expert_size = 0;  // F
};

// Vectors are floats; null where the model has none.
struct DeviceBlockWeights {
  std::optional<DeviceMlaWeights> mla;  // In place of qkv, q_norm, k_norm.
  std::optional<DeviceMoeWeights> moe;
  DeviceMatrix qkv;                       // [(H + 2 Hkv) D, E]
  DeviceMatrix o;                         // [E, H D]
  DeviceMatrix gate_up;                   // [2 F, E]; empty where there are experts only.
  DeviceMatrix down;                      // [E, F]
  const float* attn_norm = nullptr;       // [E]
  const float* qkv_bias = nullptr;        // [(H + 2 Hkv) D]
  const float* q_norm = nullptr;          // [D]
  const float* k_norm = nullptr;          // [D]
  const float* o_bias = nullptr;          // [E]
  const float* attn_post_norm = nullptr;  // [E]
  const float* mlp_norm = nullptr;        // [E]
  const float* mlp_post_norm = nullptr;   // [E]
  bool has_gelu = false;                  // In place of SiLU.
  bool has_local_rope = false;            // ModelConfig::local_rope
};

// Throws what DeviceWeights throws for the device and the graph, before anything is loaded.
void CheckDeviceModel(const ModelConfig& config, DeviceId device);

class DeviceWeights {
 public:
  // Copies the weights; `parts` are not needed any more then. Matrices stay in their formats, also
  // those with codes (device_codes.h) but for an embedding and experts, which become F16. Where
  // plain types of one stack differ, all of it becomes F32. Throws Unsupported, naming them, for
  // blocks that there is no code for, and DeviceError where memory is short, before anything is
  // copied.
  DeviceWeights(const ModelConfig& config, const ModelParts& parts, const RopeTables& ropes,
                DeviceId device, int num_threads);

  int64_t num_blocks() const { return std::ssize(blocks_); }
  const DeviceBlockWeights& block(int64_t layer) const {
    return blocks_[static_cast<size_t>(layer)];
  }
  const DeviceMatrix& embedding() const { return embedding_; }  // [V, E]
  const DeviceMatrix& output_head() const { return head_; }     // [V, E]
  const float* final_norm() const { return final_norm_; }       // [E]
  const float* frequencies() const { return frequencies_; }     // [D/2], of RoPE
  // Of blocks with another RoPE; null: there are none.
  const float* local_frequencies() const { return local_frequencies_; }
  size_t num_bytes() const { return arena_->num_bytes(); }

 private:
  class Packer;
  static void PackAttention(const AttentionGqa& attention, Packer& packer,
                            DeviceBlockWeights& block);
  static void PackLatentAttention(const AttentionMla& attention, const ModelConfig& config,
                                  Packer& packer, DeviceBlockWeights& block);
  static void PackMlp(const MlpDense& mlp, Packer& packer, DeviceBlockWeights& block);
  static void PackExperts(const MlpMoe& mlp, const ModelConfig& config, Packer& packer,
                          DeviceBlockWeights& block);

  DeviceMatrix embedding_, head_;
  const float* final_norm_ = nullptr;
  const float* frequencies_ = nullptr;
  const float* local_frequencies_ = nullptr;
  std::vector<DeviceBlockWeights> blocks_;
  std::unique_ptr<Buffer> arena_;
};

}  // namespace pmkvq
