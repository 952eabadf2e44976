// The architecture of a checkpoint: Hugging Face config.json, validated.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "pmkvq/io/json.h"
#include "pmkvq/io/quantization_config.h"
#include "pmkvq/tensor/dtype.h"

namespace pmkvq {

struct RopeScaling {
  // The numbers are part of a model's identity.
  enum class Type { kDefault, kLinear, kLlama3, kYarn, kFactors };
  Type type = Type::kDefault;
  double factor = 1.0;
  // llama3:
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  // llama3 and yarn:
  int64_t original_max_position_embeddings = 0;
  // yarn:
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  double attention_factor = 1.0;  // Multiplies cos and sin; resolved from mscale or factor.
  bool truncate = true;           // Round the correction range to whole dimensions.
  double mscale_all_dim = 0.0;    // DeepSeek's weight; latent attention scales scores by it.
  // factors: each frequency is divided by one of these [D/2]. GGUF files of Llama 3.1 and later.
  std::vector<float> factors;
};

// The RoPE of some blocks, where they have another one than the rest.
struct LocalRope {
  double theta = 10000.0;
  RopeScaling scaling;
  std::vector<bool> blocks;  // Per block: whether it has this one.
};

// What the gate of an MLP goes through (kernels/act).
enum class GateActivation : uint8_t { kSilu, kGelu };

// What a router's logits become (kernels/routing).
enum class ExpertScore : uint8_t { kSoftmax, kSigmoid };

// Blocks whose MLP is a mixture of experts: a router chooses some of them for each token, and their
// results, weighted, are added. An expert is a gated MLP.
struct MoeConfig {
  int64_t num_experts = 0;   // Of a block.
  int64_t num_chosen = 0;    // Per token.
  int64_t expert_size = 0;   // Their intermediate size.
  bool normalize = false;    // The weights of the chosen ones are divided by their sum.
  std::vector<bool> blocks;  // Per block: whether it has experts; others have a dense MLP.
  // Rules of DeepSeek (kernels/routing/routing.h).
  ExpertScore score = ExpertScore::kSoftmax;
  double weight_factor = 1.0;  // Of the weights of the chosen ones.
  bool choice_bias = false;    // A stored bias is added to the scores where experts are chosen.
  int64_t num_groups = 1;      // Experts are chosen from the best num_chosen_groups groups,
  int64_t num_chosen_groups = 1;
  int64_t group_top = 1;  // by the sum of so many best scores of a group.
  // Intermediate size of a gated MLP that all tokens go through, besides their experts; 0: none.
  int64_t shared_size = 0;

  bool IsIn(int64_t layer) const { return blocks[static_cast<size_t>(layer)]; }
};

// Latent attention (DeepSeek): keys and values of all heads are made of one latent vector a token
// and one key with RoPE that all heads share. The cache keeps these two.
struct MlaConfig {
  int64_t query_rank = 0;  // Queries go through a latent of so many values, too; 0: through none.
  int64_t latent = 0;      // r
  int64_t nope_dim = 0;    // dn, values of a head's query and key without RoPE
  int64_t rope_dim = 0;    // dr, those with it, behind the others
  int64_t value_dim = 0;   // dv, of a head's value
  bool rope_in_pairs = true;  // RoPE turns channels 2i and 2i + 1 together, not i and i + dr/2.
  double score_factor = 1.0;  // Scores are multiplied with it and (dn + dr)^-1/2.
  double norm_eps = 1e-6;     // Of the norms of latents, whatever rms_norm_eps is.
  // The matrices that make keys and values of latents are two tensors, that of keys transposed
  // (GGUF files), and not one.
  bool split_up = false;
};

// One llama-family decoder. Shapes: hidden size E, L blocks, H query heads, Hkv key/value heads,
// head_dim D (even, multiple of 8, at most 256), vocabulary V. H is a multiple of Hkv. With latent
// attention D is dn + dr, of any size, and Hkv 1.
struct ModelConfig {
  std::string architecture;  // "LlamaForCausalLM", "Qwen2ForCausalLM", ...
  std::string model_type;    // "llama", "gemma3_text", "mistral", "mixtral", "qwen3_moe", ...
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;  // Of dense MLPs.
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  // Positions that the model can use: that of the config, or original length x factor of YaRN
  // where that is more.
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000.0;
  RopeScaling rope_scaling;
  std::optional<LocalRope> local_rope;
  // Per block: a token attends to the newest so many tokens only, itself among them; 0: to all
  // before it. Empty: 0 for all blocks. A window that holds all positions counts as none, unless
  // its blocks have a local RoPE.
  std::vector<int64_t> sliding_windows;
  bool tie_word_embeddings = false;
  bool qkv_bias = false;  // q_proj, k_proj, v_proj have a bias.
  bool o_bias = false;    // o_proj has one.
  bool qk_norm = false;   // Qwen3, Gemma: RMSNorm over each head of q and k before RoPE.
  // Gemma: RMSNorm over what attention and MLP give, before it is added to the residual stream.
  bool post_norms = false;
  double norm_offset = 0.0;       // Added to the stored weights of norms.
  double embedding_factor = 1.0;  // Of the embedding, rounded to the type in which it is stored.
  double query_factor = 1.0;      // Of queries behind their norm; 1 without qk_norm.
  GateActivation activation = GateActivation::kSilu;
  std::optional<MoeConfig> moe;
  std::optional<MlaConfig> mla;
  // Blocks behind the last one, for predicting several tokens at once, which are not used.
  int64_t num_skipped_layers = 0;

  // Set where matrices may be float8 with scales (io/weights/fp8_weights.h).
  std::optional<Fp8Format> fp8;
  // Set where matrices may be blocks of that format in tensors of bytes (quantization_config.h).
  std::optional<WeightFormat> block_format;
  // Type of the weights as `dtype`, or `torch_dtype`, announces it: for estimates without the
  // weights, which say their types themselves. Nothing where the key is absent or names another
  // type.
  std::optional<DType> weight_type;

  // From config.json (what transformers assumes where a key is absent), overridden by
  // generation_config.json where that is present.
  int64_t bos_token_id = -1;  // -1: none.
  std::vector<int64_t> eos_token_ids;

  int64_t sliding_window(int64_t layer) const {
    return sliding_windows.empty() ? 0 : sliding_windows[static_cast<size_t>(layer)];
  }
  int64_t rope_dim() const { return mla ? mla->rope_dim : head_dim; }  // Rotated values of a head.
  int64_t q_dim() const { return num_heads * head_dim; }
  int64_t kv_dim() const { return num_kv_heads * head_dim; }
  // Values that share one (min, range) pair: G = min(128, D).
  int64_t group_size() const { return head_dim < 128 ? head_dim : 128; }
};

// Validates everything a later stage relies on. Throws Unsupported or InvalidInput naming the
// file, the field, the value found and what was expected: unknown architecture or hidden_act,
// missing or zero sizes, heads not divisible, head_dim odd / not a multiple of 8 / above 256,
// RoPE that differs between layer types where the architecture has one for all, unknown rope
// scaling, quantised weights, mlp_bias, experts of an architecture that has none.
ModelConfig ParseModelConfig(const JsonValue& json);

// Reads `folder`/config.json and, where present, generation_config.json; or the metadata of the
// GGUF file that `folder` means (FindGgufFile, ParseGgufConfig).
ModelConfig LoadModelConfig(const std::string& folder);

}  // namespace pmkvq
