// What a Model owns. Private to this module.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "pmkvq/base/aligned.h"
#include "pmkvq/kernels/gemm/weight_q8.h"
#include "pmkvq/model/blocks/block.h"
#include "pmkvq/model/model.h"

namespace pmkvq {

// The RoPE of each block of a config.
class RopeTables {
 public:
  explicit RopeTables(const ModelConfig& config);

  const RopeTable& Of(int64_t layer) const;
  // Of the blocks that have no local one.
  const RopeTable& global() const { return global_; }
  // Null: no block has one.
  const RopeTable* local() const { return local_ ? &*local_ : nullptr; }
  bool IsLocal(int64_t layer) const { return &Of(layer) != &global_; }

 private:
  RopeTable global_;
  std::optional<RopeTable> local_;
  std::vector<bool> is_local_;  // Per block; empty: none is.
};

// The graph of a config and the places of its weights. `config` and `ropes` must outlive it.
struct ModelParts {
  ModelParts(const ModelConfig& config, const RopeTables& ropes);
  void Declare(const ModelConfig& config, WeightList& list);

  WeightView embedding;
  WeightView output_head;  // Not declared when it is the embedding.
  std::vector<float> final_norm;
  std::vector<std::unique_ptr<Attention>> attentions;  // Per block.
  std::vector<std::unique_ptr<Mlp>> mlps;
};

// The residual stream [rows, E], and rows that wait for the output head [max(kDecodeRows, slice
// rows), E], of a Forward; from rows.scratch.
inline std::pair<float*, float*> TakeRowBuffers(const ModelConfig& config,
                                                const ForwardRows& rows) {
  float* const x = rows.scratch->Take(rows.num_rows * config.hidden_size);
  float* const normed =
      rows.scratch->Take(std::max(kDecodeRows, rows.max_slice_rows) * config.hidden_size);
  return {x, normed};
}

class DeviceModel;

struct Model::Impl {
  ~Impl();
  Impl(std::shared_ptr<const Checkpoint> opened, const ModelOptions& options,
       std::map<std::string, Tensor> replaced = {});

  // Fills the places of `list`. Float8 weights are expanded, unless they are to be quantised.
  void BindWeights(const WeightList& list, int num_threads);
  // Makes quantised matrices of those that must not stay as stored, by the mode or the device.
  void QuantizeWeights(const WeightList& list, const ModelOptions& options);

  // Those that are bound in place of the checkpoint's.
  std::map<std::string, Tensor> replacements;
  std::shared_ptr<const Checkpoint> owned_checkpoint;  // Shared by Model::WithWeights.
  const Checkpoint& checkpoint;
  WeightMode weights = WeightMode::kAsStored;
  int64_t weight_bytes = 0;
  std::vector<AlignedVector<std::byte>> expanded;  // Float8 weights as BF16.
  std::vector<QuantizedBytes> quantized;           // What views of `parts` show.
  WeightConversion conversion;
  std::vector<NamedMatrix> matrices;
  RopeTables ropes;
  ModelParts parts;
  float embedding_factor = 1;
  std::unique_ptr<DeviceModel> device;  // Null on the CPU.
};

}  // namespace pmkvq
