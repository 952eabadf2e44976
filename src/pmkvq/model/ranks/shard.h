// The part of a model that one of P ranks computes, and the slices that make its bits independent
// of P.
//
// q, k, v, gate, up and the output head are cut by outputs (heads, inner channels, tokens of the
// vocabulary): a rank computes its outputs whole. o and down are cut by inputs: ranks compute parts
// of sums. To have the same sums for any P, the inputs are always S slices, of which a rank has S /
// P neighbours; its parts are added in the fixed tree of comm/sum_tree.h, and those of the ranks as
// well. Outputs are cut into S slices, too, since BLAS rounds the edges of its tiles differently.
// Norms, routers, the embedding and the biases of o lie on every rank. Experts are not cut: a rank
// has whole neighbours of them, a slice of experts is what they add to a row. Where there are more
// ranks than KV heads, a KV head lies on P / Hkv ranks.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "pmkvq/comm/communicator.h"
#include "pmkvq/io/model_config.h"
#include "pmkvq/io/weights/weight_source.h"
#include "pmkvq/kernels/gemm/gemm.h"
#include "pmkvq/kv/cache_config.h"

namespace pmkvq {

class DeviceExchange;
enum class WeightMode : uint8_t;

// Slices of a model that nobody asked to cut otherwise.
inline constexpr int kRankSlices = 8;

// Of one dimension of the whole model: where slices begin, and which of them a rank has.
struct SliceRange {
  std::vector<int64_t> begins;  // S + 1, ascending from 0 to the size.
  size_t first = 0;             // Slices [first, last) are the rank's.
  size_t last = 0;

  int64_t begin() const { return begins[first]; }
  int64_t size() const { return begins[last] - begins[first]; }
  size_t num_slices() const { return last - first; }
  // Of slice `index` of the rank's, counted from begin().
  size_t num_all() const { return begins.size() - 1; }  // S
  int64_t offset(size_t index) const { return begins[first + index] - begins[first]; }
  int64_t size(size_t index) const { return begins[first + index + 1] - begins[first + index]; }
};

// Immutable but for the exchanges.
struct ModelShard {
  int rank = 0;
  int size = 1;                  // P
  Communicator* comm = nullptr;  // Of the P ranks; must outlive the model. Null: P = 1.
  // The same for what lies on devices; null on the CPU, and for P = 1.
  DeviceExchange* exchange = nullptr;

  SliceRange q;        // H D: columns of o.
  SliceRange heads;    // H D: rows of q, in slices of whole heads.
  SliceRange kv;       // Hkv D: rows of k and v, a slice for each head.
  SliceRange inner;    // F: rows of gate and up, columns of down.
  SliceRange vocab;    // V: rows of the output head.
  SliceRange experts;  // n: whole experts. Empty without them, and so is the next.
  SliceRange shared;   // F of the shared expert: rows of gate and up, columns of down.
  ModelConfig local;   // The model's, with the rank's heads and inner size.

  // How many different parts of the cache there are: min(P, Hkv).
  int64_t num_kv_parts = 1;
  int64_t whole_heads = 1;  // H / Hkv of the model.
  // On how many ranks each of them lies: 1, or P / Hkv.
  int64_t kv_copies() const { return size / num_kv_parts; }
};

// The numbers of ranks, from 1 to 64, that can share a model of that config.
std::vector<int> LegalRankCounts(const ModelConfig& config);

// Throws Unsupported naming what the model has, and InvalidInput listing the legal numbers, for a
// model that `num_ranks` ranks cannot share in `num_slices` slices: latent attention, on devices
// experts, heads that do not divide, columns of o whose blocks would be cut.
void CheckRanks(const ModelConfig& config, const WeightSource& weights, WeightMode mode,
                int num_ranks, int num_slices, bool on_device = false);

// The shard of one rank. `comm` as in ModelShard; its rank and size are the shard's. On a device
// slices are whole multiples of what its kernels take, and as few as S and the heads allow. Throws
// as CheckRanks.
ModelShard MakeShard(const ModelConfig& config, const WeightSource& weights, WeightMode mode,
                     Communicator* comm, int num_slices, bool on_device = false);
// The same of rank `rank` of `num_ranks`, for arithmetic: without a communicator.
ModelShard MakeShardOf(const ModelConfig& config, const WeightSource& weights, WeightMode mode,
                       int rank, int num_ranks, int num_slices, bool on_device = false);

// How a weight of the whole model is cut to what a rank has of it.
struct WeightCut {
  // kAbsent: the weight is another rank's.
  enum class Along : uint8_t { kNothing, kRows, kColumns, kAbsent };
  Along along = Along::kNothing;
  const SliceRange* range = nullptr;
};
// `name` is canonical (io/weights/weight_source.h).
WeightCut CutOf(const ModelShard& shard, const std::string& name);

// The cache of a rank: its heads, and its part of all bytes, so that every decision is that of
// the whole cache. Query heads are attended one by one, since a rank may have some only of those
// that share a KV head. Page sizes are whole multiples of the rank's, so a budget of B bytes holds
// what floor(B / parts) hold on the rank.
CacheConfig LocalCacheConfig(const CacheConfig& whole, const ModelShard& shard);

// y [num_rows, E] = the sum over all slices of all ranks of x W^T, plus bias (may be null): the
// same bits on every rank and for any P. x [num_rows, the shard's columns], which
// `range` cuts; slices[i] [E, columns of slice i] are the rank's. Collective.
void SumOfSlices(const float* x, int64_t num_rows, const SliceRange& range,
                 const std::vector<WeightView>& slices, const float* bias, float* y,
                 const ModelShard& shard, int num_threads);

// y [n] = the sum over all leaves of all ranks, in the same tree: `leaf` sets values [n] to the
// `index`-th of this rank's num_leaves. Collective.
void SumOfLeaves(int64_t n, size_t num_leaves,
                 const std::function<void(size_t index, float* values)>& leaf, float* y,
                 const ModelShard& shard, int num_threads);

// MatMulShared with bits that do not depend on P: rows of the i-th weight are the rank's of
// ranges[i].
void SlicedProducts(const float* x, int64_t num_rows,
                    std::span<const Projection<float>> projections,
                    std::span<const SliceRange* const> ranges, int num_threads);

// logits [num_rows, V] on rank 0 = the local ones [num_rows, the shard's part of V] of all ranks.
// `logits` is ignored on other ranks. Collective.
void GatherLogits(const float* local, int64_t num_rows, const ModelShard& shard, float* logits);

}  // namespace pmkvq
