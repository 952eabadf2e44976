#include "pmkvq/model/ranks/rank_size.h"

#include <utility>
#include <vector>

#include "pmkvq/model/ranks/shard.h"
#include "pmkvq/model/weight_list.h"

namespace pmkvq {
namespace {

// The weights of a config without their values.
class DeclaredSource final : public WeightSource {
 public:
  DeclaredSource(const ModelConfig& config, WeightFormat format)
      : WeightSource("the config", "", Declared(config, format)) {}

  int64_t num_files() const override { return 0; }
  std::string StoredName(std::string_view name) const override { return std::string(name); }
  std::string Identity(std::string_view) const override { return ""; }
  void DropPages(const StoredWeight&) const override {}

 private:
  static std::vector<StoredWeight> Declared(const ModelConfig& config, WeightFormat format) {
    std::vector<StoredWeight> weights;
    for (const WeightDeclaration& declared : DeclaredWeights(config)) {
      StoredWeight& weight = weights.emplace_back();
      weight.name = declared.name;
      weight.shape = declared.shape;
      weight.format = format;
    }
    return weights;
  }
};

int64_t WeightBytes(const ModelConfig& config, const WeightSource& weights, WeightMode mode,
                    const ModelShard& shard) {
  using Along = WeightCut::Along;
  int64_t bytes = 0;
  for (const WeightDeclaration& declared : DeclaredWeights(config)) {
    const WeightCut cut = CutOf(shard, declared.name);
    if (cut.along == Along::kAbsent) continue;
    int64_t rows = declared.shape[0];
    if (cut.along == Along::kRows) rows = cut.range->size();
    if (!IsMatrix(declared.role)) {
      bytes += rows * static_cast<int64_t>(sizeof(float));
      continue;
    }
    const WeightFormat stored = *weights.Get(declared.name, declared.shape).format;
    const WeightFormat made = FormatInMode(mode, stored);
    const bool stays = declared.role == WeightRole::kRouter || declared.name == "embedding";
    const int64_t cols = cut.along == Along::kColumns ? cut.range->size() : declared.shape[1];
    bytes += rows * RowBytes(stays ? stored : made, cols);
    // A tied head that is quantised is a copy of the rank's rows.
    if (declared.name == "embedding" && config.tie_word_embeddings && made != stored) {
      bytes += shard.vocab.size() * RowBytes(made, cols);
    }
  }
  return bytes;
}

}  // namespace

RankSize LargestRankOf(const ModelConfig& config, const WeightSource* weights, WeightFormat stored,
                       WeightMode mode, int num_ranks, bool on_device) {
  const DeclaredSource declared(config, stored);
  const WeightSource& source = weights != nullptr ? *weights : declared;
  RankSize size;
  for (int rank = 0; rank < num_ranks; ++rank) {
    const ModelShard shard = MakeShardOf(config, source, mode, rank, num_ranks, 0, on_device);
    const int64_t bytes = WeightBytes(config, source, mode, shard);
    if (bytes <= size.weight_bytes) continue;
    size.config = shard.local;
    size.weight_bytes = bytes;
    size.kv_parts = shard.num_kv_parts;
    size.kv_copies = shard.kv_copies();
  }
  constexpr auto kFloat = static_cast<int64_t>(sizeof(float));
  size.sums = 2 * config.num_layers;
  size.sum_bytes = size.sums * config.hidden_size * kFloat * (num_ranks - 1);
  size.logit_bytes = config.vocab_size * kFloat;
  return size;
}

}  // namespace pmkvq
