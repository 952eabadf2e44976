// A plan: the result of calibration for one model and one budget.
//
// On disk: NAME.json (this struct but for tensors, docs/formats.md) and, where there are key
// scales, NAME.safetensors beside it with "rep_scales.<block>" (KeyScales::ShapeOf) f32. The tensor
// file is written first and the JSON, which holds the tensor file's hash, is renamed last, so that
// a plan is whole or absent.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "pmkvq/kv/cache_config.h"
#include "pmkvq/kv/spec/cache_settings.h"
#include "pmkvq/tensor/tensor.h"

namespace pmkvq {

// Written: 3 for models with latent blocks, 2 for others. Version 1 is read as well.
inline constexpr int kPlanVersion = 2;
inline constexpr int kLatentPlanVersion = 3;

// Sensitivity of the loss to quantising K or V (c or k_r) of each block, means over their values:
// index [width in kWidths][block].
struct Sensitivity {
  std::vector<std::vector<double>> k;
  std::vector<std::vector<double>> v;
};

// How a plan or one of its parts was made.
struct CalibrationRecord {
  std::string dataset;
  std::string pack;  // "concat" or "single"
  int64_t num_samples = 0;
  int64_t seq_len = 0;
  int64_t effective_len = 0;
  uint64_t seed = 0;
  // NameOf(WeightMode) of the model that was measured. Files leave it out where it is this one.
  std::string weights = kStoredWeights;
  static constexpr const char* kStoredWeights = "as-stored";
};

struct Plan {
  std::string model_identity;  // Checkpoint::Identity()
  KvGeometry geometry;

  // Inputs of allocation. Of the settings a plan holds those with a plan_key (CacheField).
  CacheSettings settings = {.sink_tokens = 1, .window_tokens = kPageTokens};
  int64_t max_len = 0;
  int64_t memory_budget_bytes = 0;
  int rope_floor_bits = 8;  // CacheConfig's, of latent blocks.
  bool mirrored = false;    // Block i was judged by the sensitivities of block L - 1 - i.

  // Its result, size L each; widths of a block without cache have no effect.
  std::vector<int> k_bits;
  std::vector<int> v_bits;
  std::vector<int64_t> budget_bytes;

  Sensitivity sensitivity;    // May be empty.
  std::vector<double> alpha;  // Chosen exponent per block; empty: no key scales.
  int rep_k_bits = 0;         // Widths of the scale search.
  int rep_v_bits = 0;
  // Per block KeyScales::ShapeOf f32 (nothing in a block without cache), or empty.
  std::vector<Tensor> key_scales;
  CalibrationRecord record;
};

// `path` names the JSON file and ends in .json; the tensor file has the same name with
// .safetensors. Throws IoError, InvalidInput (another ending).
void SavePlan(const Plan& plan, const std::string& path);

// Reads and validates both files. Throws IoError, InvalidInput (file, field, value, expected;
// unknown version; hash of the tensor file differs).
Plan LoadPlan(const std::string& path);

// The JSON part alone, without key scales (fuzz entry point). Sets `tensor_hash`, empty when the
// plan has no key scales. Throws InvalidInput.
Plan ParsePlanJson(std::string_view text, const std::string& source, std::string* tensor_hash);

// Throws InvalidInput naming both identities when the plan was made for another model.
void CheckPlanMatches(const Plan& plan, const std::string& model_identity,
                      const std::string& plan_path);

}  // namespace pmkvq
