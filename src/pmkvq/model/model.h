// A llama-family decoder from a checkpoint: weights as stored or quantised, one batched Forward.
//
// The graph: x = embedding of the tokens, times a factor in some models; for every block x +=
// Attention(x), x += Mlp(x) (model/blocks/); logits = RmsNorm(x) Wlm (the embedding when tied).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "pmkvq/base/sinks.h"
#include "pmkvq/io/checkpoint.h"
#include "pmkvq/kernels/gemm/gemm.h"
#include "pmkvq/kernels/rope/rope.h"
#include "pmkvq/kernels/sampling/sampling.h"
#include "pmkvq/kv/kv_store.h"
#include "pmkvq/model/forward_workspace.h"
#include "pmkvq/tensor/tensor.h"

namespace pmkvq {

class Attention;
class DeviceModel;
class Mlp;
class ModelRanks;
struct ModelShard;

// How the matrices of a model are kept in memory.
enum class WeightMode : uint8_t {
  kAsStored,  // Mapped, in the checkpoint's types.
  kQ8,        // Int8 codes in groups (weight_q8.h), made when the model is loaded.
  kQ4,        // 4-bit codes in groups (weight_q4.h), likewise.
};
// "as-stored", "q8", "q4".
std::string NameOf(WeightMode mode);
// Throws InvalidInput naming the known modes.
WeightMode ParseWeightMode(const std::string& name);
// "as-stored", "q8", "q4".
std::vector<std::string> WeightModeNames();
// What a matrix in the format `stored` becomes in that mode: the format of the mode where that
// saves a quarter of the bytes or more, else it stays as it is. The embedding always stays.
WeightFormat FormatInMode(WeightMode mode, WeightFormat stored);

struct ModelOptions {
  WeightMode weights = WeightMode::kAsStored;
  int num_threads = 1;               // For quantising.
  ProgressSink* progress = nullptr;  // Of quantising that takes long, in MiB of stored weights.
  DeviceId device = {};              // That the weights lie on, and Forward runs on.
  // Slices in which sums over inputs are computed (model/ranks/shard.h): a power of two. 0: as many
  // as the ranks need; none for one.
  int tp_slices = 0;
  // Ranks that compute the model together (model/ranks/model_ranks.h), and must outlive it. Null:
  // this process alone.
  ModelRanks* ranks = nullptr;
};

// What loading made of weights that are not used as stored.
struct WeightConversion {
  std::vector<std::string> types;  // Of the stored tensors: "Q4_K", "Q6_K"; in order of name.
  int64_t num_tensors = 0;
  int64_t stored_bytes = 0;
  int64_t bytes = 0;  // Of what they became.
};

// Takes logits of many rows of a chunk a few at a time, so that they are never all in memory.
class LogitReader {
 public:
  virtual ~LogitReader() = default;
  // Of `num_rows` rows of the chunk, in their order: logits [num_rows, V], valid during the call,
  // which Forward makes on its thread, where it may pause (base/turns.h).
  virtual void Read(int64_t first_row, int64_t num_rows, const float* logits) = 0;
};

// The next token, drawn where the logits are instead of handing them over.
struct ForwardDraw {
  SamplingParams params;
  double uniform = 0.0;  // In [0, 1), of the request's generator. Not used where greedy.
};

// New tokens of one sequence in one Forward.
struct ForwardChunk {
  enum class Logits : uint8_t { kNone, kLast, kAll };
  SequenceId seq = 0;
  std::span<const int32_t> tokens;
  int64_t start_pos = 0;  // Position of tokens[0]: the sequence's length so far.
  Logits logits = Logits::kLast;
  // The tokens get the bits that Forwards of one token each would give (KvStore::ReserveOneByOne
  // made the room), while weights are read once for many. Not with kAll or a reader (check).
  bool one_by_one = false;
  // Logits of the first `num_read` rows go to `reader`, kMostReadRows at a time at most, and not to
  // the workspace. What `logits` keeps, not kAll, lies behind these rows (check) and has the bits
  // that it has without a reader.
  LogitReader* reader = nullptr;
  int64_t num_read = 0;
  // With one token and kLast, of all chunks of a Forward or of none, where Model::draws_tokens: the
  // workspace's `drawn` gets the tokens. Logits are left only where some are not finite.
  const ForwardDraw* draw = nullptr;
  bool ends_prompt = false;  // It holds the last token of a prompt: some caches compress it then.
};

constexpr int64_t kMostReadRows = 64;

// A chunk of a Forward whose sequence the store could not go on with. It can only be closed.
struct ForwardFailure {
  size_t chunk = 0;  // Index among the chunks of the call.
  KvFailure failure;
};

// Throws the first one as InvalidInput, for callers that have no use for the other chunks then.
void ThrowIfFailed(const std::vector<ForwardFailure>& failures);

// Immutable: any number of engines and threads may share one model. Each of
// them needs separate workspaces and stores.
class Model {
 public:
  // Maps and binds all weights. Throws as Checkpoint::Open, and InvalidInput for missing
  // tensors, wrong shapes (file, tensor, found, expected), and for tensors of a block that the
  // config does not announce (a bias, a block too many): the graph would be another one.
  //
  // kQ8 and kQ4 quantise matrices of the blocks and the output head, and give the memory of their
  // mapped originals back; norms, biases, routers and the embedding stay. A tied output head is
  // a quantised copy of the embedding. FormatInMode says which stay as stored. InvalidInput for
  // weights that are not finite, or too large for the format.
  //
  // A device gets a copy of all weights. Throws Unsupported for what there is no code for, naming
  // it, and DeviceError (no such device, memory short: bytes asked and free).
  //
  // There are no kernels for block formats (tensor/weight_format.h) on devices: they become q8
  // groups there, the embedding too.
  //
  // With `ranks` every rank loads its shard: ModelRanks::Load, with its errors.
  static std::shared_ptr<const Model> Load(const std::string& folder,
                                           const ModelOptions& options = {});
  // The same from a checkpoint that is open, or was made in memory (where originals stay).
  static std::shared_ptr<const Model> FromCheckpoint(Checkpoint checkpoint,
                                                     const ModelOptions& options = {});
  // This model, its mode and device, with other weights in place of some of the checkpoint's, which
  // both share: float32 tensors by canonical name (io/weights/weight_source.h), of the shapes of
  // those they replace. Throws InvalidInput naming the tensor, and as Load.
  std::shared_ptr<const Model> WithWeights(std::map<std::string, Tensor> replacements,
                                           int num_threads) const;
  ~Model();

  const ModelConfig& config() const;
  const Checkpoint& checkpoint() const;
  WeightMode weights() const;
  // That Forward runs on. Profile and what else reads weights one by one run on the CPU.
  DeviceId device() const;
  // The weights there (model/device/device_model.h); null on the CPU.
  const DeviceModel* device_model() const;
  // Whether Forward takes ForwardChunk::draw.
  bool draws_tokens() const;
  const WeightConversion& conversion() const;
  // The part of the model that this process computes; null: all of it, without slices.
  const ModelShard* shard() const;
  // The ranks that compute it together; null: this process alone.
  ModelRanks* ranks() const;
  // Memory that the weights take: matrices in their formats, norms and biases as floats. Of a shard
  // its own.
  int64_t weight_bytes() const;
  KvGeometry kv_geometry() const;
  // That of blocks without a local one (ModelConfig::local_rope). Stores that want keys before RoPE
  // refuse models with sliding windows, which are those that have two.
  const RopeTable& rope() const;
  const RopeTable& rope(int64_t layer) const;
  // The parts of a block (model/blocks/block.h).
  const Attention& attention(int64_t layer) const;
  const Mlp& mlp(int64_t layer) const;
  // Products of Forward and Profile read these: all matrices of the blocks, the router's among
  // them, then the output head as "output_head", tied or not. Views of the host, as they are kept.
  struct NamedMatrix {
    std::string name;  // Canonical (io/weights/weight_source.h).
    bool is_router = false;
    WeightView view;
  };
  std::vector<NamedMatrix> matrices() const;
  const WeightView& embedding() const;  // [V, E]
  float embedding_factor() const;       // Of its rows, in the residual stream.
  // [V, E], of a shard its rows; the embedding when tied.
  const WeightView& output_head() const;
  const std::vector<float>& final_norm() const;
  // What attention scores are multiplied with: 1 / sqrt(D), times YaRN's factor in latent
  // attention.
  double attention_scale() const;

  // Why logits [V], which position `position` of a sequence gave, cannot be used: one is not
  // finite. Nothing when all are.
  std::optional<KvFailure> FailureOfLogits(const float* logits, int64_t position) const;
  // The same of all rows that a Forward of these chunks has left: of each chunk the first one.
  std::vector<ForwardFailure> FailuresOfLogits(std::span<const ForwardChunk> chunks,
                                               const ForwardWorkspace& workspace) const;

  // Runs all blocks, with the key scales of `store`, on the chunks and leaves logits in
  // `workspace`. In the last block the output projection and the MLP are left out for rows that
  // want no logits. `store` must have room reserved for every chunk; its BeginForward / EndForward
  // are called here. Token ids must be in [0, V) (check; callers validate requests).
  //
  // Errors: returns the chunks whose sequence failed (kv_store.h), usually none. Their logits are
  // undefined; those of other chunks are as without them. Callers check logits
  // (FailureOfLogits). Where memory runs out it throws, and all sequences of the call have failed.
  //
  // On a device the workspace belongs to one store at a time, and to one model. `num_threads` is
  // of stores of the host.
  //
  // Batch invariance: with chunks of one token a row's logits do not depend on the other chunks,
  // nor on the thread count. Other chunks, but those with one_by_one, are computed one sequence at
  // a time.
  [[nodiscard]] std::vector<ForwardFailure> Forward(std::span<const ForwardChunk> chunks,
                                                    KvStore& store, ForwardWorkspace& workspace,
                                                    int num_threads) const;

 private:
  Model();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pmkvq
