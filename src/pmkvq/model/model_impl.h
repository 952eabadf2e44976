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
#include "pmkvq/model/ranks/shard.h"

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

// The graph of a config and the places of its weights. `config` and `ropes` must outlive it, and so
// must `shard`; with one `config` is its local one.
struct ModelParts {
  ModelParts(const ModelConfig& config, const RopeTables& ropes, const ModelShard* shard = nullptr);
  void Declare(const ModelConfig& config, WeightList& list, const ModelShard* shard = nullptr);

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

  // The config that the parts are made of.
  const ModelConfig& local_config() const {
    return shard != nullptr ? shard->local : checkpoint.config();
  }
  // Fills the places of `list`. Float8 weights are expanded, unless they are to be quantised.
  void BindWeights(const WeightList& list, int num_threads);
  // Of a shard: `stored` is the whole weight. The rank's rows are views; its columns are copied.
  void BindCut(const WeightSlot& slot, const StoredWeight& stored, int num_threads);
  // `data` is that of the whole weight, stored or expanded.
  void BindColumns(const WeightSlot& slot, const StoredWeight& stored, const std::byte* data,
                   const SliceRange& range, int num_threads);
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
  std::unique_ptr<const ModelShard> shard;  // Null: the whole model, without slices.
  ModelRanks* ranks = nullptr;
  ModelParts parts;
  float embedding_factor = 1;
  std::unique_ptr<DeviceModel> device;  // Null on the CPU.
};

// Model::Forward on the CPU of this process. Of a shard: all ranks call it with their parts of the
// store and the same chunks; logits are rank 0's, failures those of the rank's heads.
std::vector<ForwardFailure> ForwardHere(const Model& model, std::span<const ForwardChunk> chunks,
                                        KvStore& store, ForwardWorkspace& workspace,
                                        int num_threads);

}  // namespace pmkvq
