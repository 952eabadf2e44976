// Shapes of known models by name, without their weights.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pmkvq/io/model_config.h"
#include "pmkvq/kv/kv_geometry.h"
#include "pmkvq/model/model.h"

namespace pmkvq {

// Vocabulary of synthetic models: an output layer that costs nothing to speak of, as in the
// measurements of other engines that ours are compared with.
inline constexpr int64_t kBenchVocabulary = 1024;

// "qwen2-7b", "llama3-8b", "llama2-7b" (one query head per KV head), "qwen2-1.5b", "longcot" (the
// shape of the shipped model).
std::vector<std::string> ShapeNames();

// The configuration of a shape with `layers` blocks (0: as many as the model has) and
// kBenchVocabulary. Throws InvalidInput for another name.
ModelConfig NamedShape(std::string_view name, int64_t layers);

// Shapes of latent attention, for BenchAttention: "deepseek-v2-lite" (16 heads), "minicpm3" (40),
// "deepseek-v2" (128).
std::vector<std::string> LatentShapeNames();
// One block of such a shape; nothing for another name.
std::optional<KvBlockGeometry> NamedLatentShape(std::string_view name);

// Shapes with experts, for BenchDecode: "qwen3-30b-a3b" (128 experts, 8 a token),
// "deepseek-v2-lite" (64, 6 and a shared one; the first block is dense; latent attention).
std::vector<std::string> ExpertShapeNames();
// As NamedShape; nothing for another name.
std::optional<ModelConfig> NamedExpertShape(std::string_view name, int64_t layers);

// How many weights a decode step with `rows` sequences reads, without the embedding. A block with n
// experts, of which each row chooses k, reads n (1 - (1 - k / n)^rows) experts: the expected number
// where all experts are equally likely.
double WeightsOfStep(const ModelConfig& config, int64_t rows);

// The matrices of one block, in the model's order, by their names in checkpoints: "q_proj", ...
struct BlockMatrix {
  std::string name;
  int64_t rows = 0;
  int64_t cols = 0;
};
std::vector<BlockMatrix> BlockMatrices(const ModelConfig& config);

// Weights of these matrices, and bytes of all matrices of a synthetic model (BF16).
int64_t BlockParameters(const ModelConfig& config);
int64_t SyntheticModelBytes(const ModelConfig& config);

// Bytes in memory per value of a synthetic matrix, scales of groups included.
double BytesPerWeight(WeightMode mode);

// Throws InvalidInput when this machine has less than `bytes` of free memory. `remedy` names the
// option that lowers the need.
void CheckMemory(int64_t bytes, const std::string& remedy);

}  // namespace pmkvq
