#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/io/weights/fp8_weights.h"
#include "pmkvq/kernels/gemm/device_codes_layout.h"
#include "pmkvq/kernels/gemm/weight_q4.h"
#include "pmkvq/kernels/gemm/weight_q8.h"
#include "pmkvq/kernels/sampling/device_sampler.h"
#include "pmkvq/model/device/device_model.h"
#include "pmkvq/model/model_impl.h"
#include "pmkvq/model/model_size.h"
#include "pmkvq/model/ranks/model_ranks.h"

namespace pmkvq {

namespace {

RopeParams ParamsOf(int64_t head_dim, double theta, const RopeScaling& scaling) {
  RopeParams params;
  params.head_dim = head_dim;
  params.theta = theta;
  switch (scaling.type) {
    case RopeScaling::Type::kDefault:
      params.scaling = RopeParams::Scaling::kDefault;
      break;
    case RopeScaling::Type::kLinear:
      params.scaling = RopeParams::Scaling::kLinear;
      break;
    case RopeScaling::Type::kLlama3:
      params.scaling = RopeParams::Scaling::kLlama3;
      break;
    case RopeScaling::Type::kYarn:
      params.scaling = RopeParams::Scaling::kYarn;
      break;
    case RopeScaling::Type::kFactors:
      params.scaling = RopeParams::Scaling::kFactors;
      break;
  }
  params.factor = scaling.factor;
  params.low_freq_factor = scaling.low_freq_factor;
  params.high_freq_factor = scaling.high_freq_factor;
  params.original_max_position = scaling.original_max_position_embeddings;
  params.beta_fast = scaling.beta_fast;
  params.beta_slow = scaling.beta_slow;
  params.attention_factor = scaling.attention_factor;
  params.truncate = scaling.truncate;
  params.factors = scaling.factors;
  return params;
}

AlignedVector<std::byte> Expanded(const StoredWeight& stored, int num_threads) {
  AlignedVector<std::byte> values(static_cast<size_t>(NumElements(stored.shape)) * sizeof(BF16));
  ExpandFp8(stored, num_threads, reinterpret_cast<BF16*>(values.data()));
  return values;
}

void BindVector(const StoredWeight& stored, int num_threads, std::vector<float>& place) {
  const int64_t size = stored.shape.back();
  place.resize(static_cast<size_t>(size));
  if (stored.fp8 != nullptr) {
    const AlignedVector<std::byte> values = Expanded(stored, num_threads);
    ExpandRow(WeightView{values.data(), *stored.format, 1, size}, 0, place.data());
  } else {
    ExpandRow(WeightView{stored.data, *stored.format, 1, size}, 0, place.data());
  }
  if (stored.pair_rows == 0) return;
  const std::vector<float> in_pairs = place;
  const WeightView rows{nullptr, WeightFormat::kF32, size, 1, stored.pair_rows};
  for (int64_t i = 0; i < size; ++i) {
    place[static_cast<size_t>(i)] = in_pairs[static_cast<size_t>(rows.StoredRow(i))];
  }
}

// As they are: a norm's form (NormForm) is not applied. `tensor` stays where it is.
void BindReplacement(const WeightSlot& slot, const Tensor& tensor) {
  if (tensor.dtype() != DType::kF32 || tensor.shape() != slot.shape) {
    throw InvalidInput(
        "replacement",
        fmt::format("tensor '{}': found {} {}, expected F32 [{}]", slot.name,
                    NameOf(tensor.dtype()), ToString(tensor.shape()), fmt::join(slot.shape, ", ")));
  }
  const auto* const values = tensor.As<float>();
  if (slot.vector != nullptr) {
    slot.vector->assign(values, values + slot.shape.back());
  } else {
    *slot.matrix = {reinterpret_cast<const std::byte*>(values), WeightFormat::kF32, slot.shape[0],
                    slot.shape[1]};
  }
}

// The weights of the checkpoint must not hold more of a block than is bound: ignoring them would
// compute another function than the one that was trained.
void CheckAllAreBound(const Checkpoint& checkpoint, const std::set<const StoredWeight*>& bound) {
  for (const StoredWeight& tensor : checkpoint.weights().tensors()) {
    if (!tensor.of_block || bound.contains(&tensor)) continue;
    const ModelConfig& config = checkpoint.config();
    throw InvalidInput(
        tensor.file,
        fmt::format("tensor '{}': found here, expected only what the model's config announces ({}, "
                    "{} blocks)",
                    tensor.stored_name, config.architecture, config.num_layers));
  }
}

// transformers rounds the factor to the type in which the embedding is stored.
float RoundedTo(WeightFormat format, double factor) {
  const auto value = static_cast<float>(factor);
  if (format == WeightFormat::kBF16) return ToFloat(ToBF16(value));
  if (format == WeightFormat::kF16) return ToFloat(ToF16(value));
  return value;
}

int64_t ToMiB(uint64_t bytes) { return static_cast<int64_t>(bytes >> 20); }

// One matrix to quantise, to which format, and where its view belongs.
struct ToQuantize {
  const StoredWeight* stored = nullptr;
  WeightView as_stored;
  WeightFormat format = WeightFormat::kQ8;
  WeightView* place = nullptr;
};

// False: a weight is not finite, or too large for the format. `data` owns what `made` shows.
bool Quantize(const WeightView& weight, WeightFormat format, int num_threads, QuantizedBytes& data,
              WeightView& made) {
  if (format == WeightFormat::kQ4_1) {
    Q4Weight q4;
    if (!QuantizeWeightToQ4(weight, num_threads, q4)) return false;
    data = std::move(q4.data);
  } else {
    Q8Weight q8;
    if (!QuantizeWeight(weight, num_threads, q8)) return false;
    data = std::move(q8.data);
  }
  made = {data.data(), format, weight.rows, weight.cols};
  return true;
}

[[noreturn]] void ThrowNotQuantizable(const StoredWeight& stored, WeightFormat format) {
  throw InvalidInput(
      stored.file,
      format == WeightFormat::kQ4_1
          ? fmt::format("tensor '{}': found a value that is not finite or beyond 65504, expected "
                        "weights that F16 can hold; use --weights q8 or as-stored",
                        stored.stored_name)
          : fmt::format("tensor '{}': found a value that is not finite, expected finite weights",
                        stored.stored_name));
}

}  // namespace

RopeTables::RopeTables(const ModelConfig& config)
    : global_(ParamsOf(config.rope_dim(), config.rope_theta, config.rope_scaling)) {
  if (!config.local_rope) return;
  local_.emplace(ParamsOf(config.head_dim, config.local_rope->theta, config.local_rope->scaling));
  is_local_ = config.local_rope->blocks;
}

const RopeTable& RopeTables::Of(int64_t layer) const {
  return !is_local_.empty() && is_local_[static_cast<size_t>(layer)] ? *local_ : global_;
}

ModelParts::ModelParts(const ModelConfig& config, const RopeTables& ropes,
                       const ModelShard* shard) {
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    attentions.push_back(MakeAttention(config, ropes.Of(layer), layer, shard));
    mlps.push_back(MakeMlp(config, layer, shard));
  }
}

void ModelParts::Declare(const ModelConfig& config, WeightList& list, const ModelShard* shard) {
  list.Matrix("embedding", config.vocab_size, config.hidden_size, embedding);
  if (!config.tie_word_embeddings) {
    list.Matrix("output_head", shard != nullptr ? shard->vocab.size() : config.vocab_size,
                config.hidden_size, output_head);
  }
  list.Norm("final_norm", config.hidden_size, final_norm, {config.norm_offset});
  for (size_t layer = 0; layer < attentions.size(); ++layer) {
    list.SetPrefix(fmt::format("blocks.{}.", layer));
    attentions[layer]->Declare(list);
    mlps[layer]->Declare(list);
  }
}

std::vector<WeightDeclaration> DeclaredWeights(const ModelConfig& config) {
  const RopeTables ropes(config);
  ModelParts parts(config, ropes);
  WeightList list;
  parts.Declare(config, list);
  return {list.slots().begin(), list.slots().end()};
}

std::unique_ptr<const ModelShard> ShardOf(const Checkpoint& checkpoint,
                                          const ModelOptions& options) {
  if (options.ranks == nullptr && options.tp_slices == 0) return nullptr;
  if (options.device.device != Device::kCpu) {
    throw Unsupported(NameOf(options.device),
                      options.ranks != nullptr
                          ? "found several ranks, which share models on the CPU only; use --device "
                            "cpu, or one rank"
                          : "found --tp-slices, which models on the CPU have only");
  }
  Communicator* const comm = options.ranks != nullptr ? &options.ranks->comm() : nullptr;
  return std::make_unique<const ModelShard>(MakeShard(checkpoint.config(), checkpoint.weights(),
                                                      options.weights, comm, options.tp_slices));
}

Model::Impl::Impl(std::shared_ptr<const Checkpoint> opened, const ModelOptions& options,
                  std::map<std::string, Tensor> replaced)
    : replacements(std::move(replaced)),
      owned_checkpoint(std::move(opened)),
      checkpoint(*owned_checkpoint),
      weights(options.weights),
      ropes(checkpoint.config()),
      shard(ShardOf(checkpoint, options)),
      ranks(options.ranks),
      parts(local_config(), ropes, shard.get()) {
  if (options.device.device != Device::kCpu) {
    CheckDeviceModel(checkpoint.config(), options.device);
  }
  WeightList list;
  parts.Declare(local_config(), list, shard.get());
  BindWeights(list, options.num_threads);
  QuantizeWeights(list, options);
  for (const WeightSlot& slot : list.slots()) {
    if (slot.matrix == nullptr || slot.matrix == &parts.embedding) continue;
    if (slot.matrix != &parts.output_head) {
      matrices.push_back({slot.name, slot.role == WeightRole::kRouter, *slot.matrix});
    }
  }
  matrices.push_back({"output_head", false, parts.output_head});
  embedding_factor = RoundedTo(parts.embedding.format, checkpoint.config().embedding_factor);
  for (const WeightSlot& slot : list.slots()) {
    if (shard != nullptr && slot.slices != nullptr) {
      for (const WeightView& slice : *slot.slices) {
        weight_bytes += static_cast<int64_t>(slice.num_bytes());
      }
      continue;
    }
    weight_bytes += slot.matrix != nullptr
                        ? slot.matrix->rows * RowBytes(slot.matrix->format, slot.matrix->cols)
                        : std::ssize(*slot.vector) * static_cast<int64_t>(sizeof(float));
  }
  // A tied head that was quantised is a copy.
  if (checkpoint.config().tie_word_embeddings &&
      parts.output_head.format != parts.embedding.format) {
    weight_bytes +=
        parts.output_head.rows * RowBytes(parts.output_head.format, parts.output_head.cols);
  }
  if (options.device.device == Device::kCpu) return;
  device = std::make_unique<DeviceModel>(checkpoint.config(), parts, ropes, embedding_factor,
                                         options.device, options.num_threads);
}

Model::Impl::~Impl() = default;

void Model::Impl::BindWeights(const WeightList& list, int num_threads) {
  const WeightSource& source = checkpoint.weights();
  std::set<const StoredWeight*> bound;
  size_t num_replaced = 0;
  // Of a shard: the shapes in the files, in the same order.
  const std::vector<WeightDeclaration> whole =
      shard != nullptr ? DeclaredWeights(checkpoint.config()) : std::vector<WeightDeclaration>();
  for (size_t i = 0; i < list.slots().size(); ++i) {
    const WeightSlot& slot = list.slots()[i];
    if (shard != nullptr) {
      PMKVQ_CHECK(whole[i].name == slot.name);
      const StoredWeight& stored = source.Get(slot.name, whole[i].shape);
      bound.insert(&stored);
      BindCut(slot, stored, num_threads);
      continue;
    }
    const StoredWeight& stored = source.Get(slot.name, slot.shape);
    bound.insert(&stored);
    if (const auto found = replacements.find(slot.name); found != replacements.end()) {
      BindReplacement(slot, found->second);
      ++num_replaced;
    } else if (slot.vector != nullptr) {
      BindVector(stored, num_threads, *slot.vector);
      for (float& value : *slot.vector) {
        value = static_cast<float>((double{value} + slot.form.offset) * slot.form.factor);
      }
    } else {
      *slot.matrix = {stored.data, *stored.format, slot.shape[0], slot.shape[1], stored.pair_rows};
      // Those that are quantised are expanded one by one, when it is their turn.
      const bool is_quantized = slot.matrix != &parts.embedding &&
                                slot.role != WeightRole::kRouter &&
                                FormatInMode(weights, *stored.format) != *stored.format;
      if (stored.fp8 != nullptr && !is_quantized) {
        slot.matrix->data = expanded.emplace_back(Expanded(stored, num_threads)).data();
      }
    }
  }
  CheckAllAreBound(checkpoint, bound);
  if (num_replaced == replacements.size()) return;
  for (const auto& [name, tensor] : replacements) {
    // By its value: clang 14 and 15 capture no structured bindings.
    const auto is_declared = [&wanted = name](const WeightSlot& slot) {
      return slot.name == wanted;
    };
    if (std::any_of(list.slots().begin(), list.slots().end(), is_declared)) continue;
    throw InvalidInput(checkpoint.folder(),
                       fmt::format("replacement '{}': found no such weight, expected the canonical "
                                   "name of one",
                                   name));
  }
}

void Model::Impl::BindCut(const WeightSlot& slot, const StoredWeight& stored, int num_threads) {
  using Along = WeightCut::Along;
  const WeightCut cut = CutOf(*shard, slot.name);
  if (cut.along == Along::kAbsent) {
    *slot.matrix = {nullptr, *stored.format, 0, slot.shape[1]};
    return;
  }
  if (slot.vector != nullptr) {
    BindVector(stored, num_threads, *slot.vector);
    if (cut.along == Along::kRows) {
      const std::vector<float>& all = *slot.vector;
      const auto first = all.begin() + cut.range->begin();
      *slot.vector = std::vector<float>(first, first + cut.range->size());
    }
    PMKVQ_CHECK(std::ssize(*slot.vector) == slot.shape.back());
    for (float& value : *slot.vector) {
      value = static_cast<float>((double{value} + slot.form.offset) * slot.form.factor);
    }
    return;
  }
  AlignedVector<std::byte> values;  // Float8 as BF16, the whole weight.
  if (stored.fp8 != nullptr) values = Expanded(stored, num_threads);
  const std::byte* const data = values.empty() ? stored.data : values.data();
  *slot.matrix = {data, *stored.format, slot.shape[0], slot.shape[1], stored.pair_rows};
  if (cut.along == Along::kColumns) {
    PMKVQ_CHECK(slot.slices != nullptr);
    return BindColumns(slot, stored, data, *cut.range, num_threads);
  }
  PMKVQ_CHECK(slot.slices == nullptr);
  if (cut.along == Along::kRows) {
    slot.matrix->data += cut.range->begin() * RowBytes(*stored.format, slot.shape[1]);
  }
  if (values.empty()) return;
  // The rank's rows are kept, quantised or not.
  const bool stays = slot.matrix == &parts.embedding || slot.role == WeightRole::kRouter;
  const WeightFormat used = stays ? *stored.format : FormatInMode(weights, *stored.format);
  if (used == *stored.format) {
    const std::byte* const first = slot.matrix->data;
    const AlignedVector<std::byte>& kept =
        expanded.emplace_back(first, first + slot.matrix->num_bytes());
    slot.matrix->data = kept.data();
  } else {
    const WeightView as_stored = *slot.matrix;
    if (!Quantize(as_stored, used, num_threads, quantized.emplace_back(), *slot.matrix)) {
      ThrowNotQuantizable(stored, used);
    }
    conversion.num_tensors += 1;
    conversion.stored_bytes += static_cast<int64_t>(stored.num_bytes);
    conversion.bytes += std::ssize(quantized.back());
  }
  checkpoint.weights().DropPages(stored);
}

void Model::Impl::BindColumns(const WeightSlot& slot, const StoredWeight& stored,
                              const std::byte* data, const SliceRange& range, int num_threads) {
  const WeightFormat format = *stored.format;
  const WeightFormat used = FormatInMode(weights, format);
  const int64_t rows = stored.shape[0];
  const int64_t row_bytes = RowBytes(format, stored.shape[1]);
  for (size_t i = 0; i < range.num_slices(); ++i) {
    WeightView& slice = slot.slices->emplace_back();
    slice = {nullptr, format, rows, range.size(i)};
    if (slice.cols == 0) continue;
    const int64_t slice_bytes = RowBytes(format, slice.cols);
    AlignedVector<std::byte> copy(static_cast<size_t>(rows * slice_bytes));
    const std::byte* from = data + BytesBefore(format, range.begin() + range.offset(i));
    for (int64_t row = 0; row < rows; ++row) {
      std::copy_n(from + row * row_bytes, slice_bytes, copy.data() + row * slice_bytes);
    }
    slice.data = copy.data();
    if (used == format) {
      expanded.push_back(std::move(copy));
      continue;
    }
    const WeightView as_stored = slice;
    if (!Quantize(as_stored, used, num_threads, quantized.emplace_back(), slice)) {
      ThrowNotQuantizable(stored, used);
    }
    conversion.bytes += std::ssize(quantized.back());
  }
  // Products read the slices. The matrix says their format, and has no data.
  *slot.matrix = {nullptr, used, slot.shape[0], slot.shape[1]};
  checkpoint.weights().DropPages(stored);
  if (used == format) return;
  conversion.num_tensors += 1;
  conversion.stored_bytes += static_cast<int64_t>(stored.num_bytes);
}

void Model::Impl::QuantizeWeights(const WeightList& list, const ModelOptions& options) {
  const WeightSource& source = checkpoint.weights();
  const bool is_tied = checkpoint.config().tie_word_embeddings;
  std::vector<ToQuantize> work;
  uint64_t total_bytes = 0;
  const auto add = [&](const std::string& name, const WeightView& as_stored, WeightFormat format,
                       WeightView& place) {
    work.push_back({source.Find(name), as_stored, format, &place});
    total_bytes += work.back().stored->num_bytes;
  };
  if (is_tied) parts.output_head = parts.embedding;
  if (is_tied && shard != nullptr) {
    parts.output_head.data +=
        shard->vocab.begin() * RowBytes(parts.embedding.format, parts.embedding.cols);
    parts.output_head.rows = shard->vocab.size();
  }
  for (const WeightSlot& slot : list.slots()) {
    if (slot.matrix == nullptr || (shard != nullptr && slot.slices != nullptr)) continue;
    if (slot.matrix->rows == 0) continue;  // Another rank's.
    const WeightFormat stored = slot.matrix->format;
    const bool stays = slot.matrix == &parts.embedding || slot.role == WeightRole::kRouter;
    WeightFormat format = stays ? stored : FormatInMode(weights, stored);
    if (options.device.device != Device::kCpu && !HasDeviceCodes(format) && IsBlockFormat(format)) {
      format = WeightFormat::kQ8;
    }
    if (format != stored) add(slot.name, *slot.matrix, format, *slot.matrix);
  }
  const WeightFormat head_format = FormatInMode(weights, parts.embedding.format);
  const bool copies_embedding = is_tied && head_format != parts.embedding.format;
  if (copies_embedding) add("embedding", parts.output_head, head_format, parts.output_head);

  // Less than a second: nobody waits for it.
  constexpr uint64_t kShownBytes = uint64_t{256} << 20;
  ProgressSink* const progress = total_bytes >= kShownBytes ? options.progress : nullptr;
  if (progress != nullptr) progress->Begin("MiB of weights", ToMiB(total_bytes), 0);
  uint64_t done_bytes = 0;
  std::set<std::string> types;
  for (ToQuantize& each : work) {
    const StoredWeight& stored = *each.stored;
    AlignedVector<std::byte> values;
    if (stored.fp8 != nullptr && each.as_stored.data == stored.data) {
      values = Expanded(stored, options.num_threads);
      each.as_stored.data = values.data();
    }
    QuantizedBytes& made = quantized.emplace_back();
    if (!Quantize(each.as_stored, each.format, options.num_threads, made, *each.place)) {
      ThrowNotQuantizable(stored, each.format);
    }
    source.DropPages(stored);
    types.insert(stored.type);
    conversion.num_tensors += 1;
    conversion.stored_bytes += static_cast<int64_t>(stored.num_bytes);
    conversion.bytes += std::ssize(made);
    if (progress != nullptr) {
      progress->Advance(ToMiB(done_bytes + stored.num_bytes) - ToMiB(done_bytes));
      done_bytes += stored.num_bytes;
    }
  }
  if (progress != nullptr) progress->End();
  conversion.types.assign(types.begin(), types.end());
}

Model::Model() = default;
Model::~Model() {
  if (impl_ != nullptr && impl_->ranks != nullptr) impl_->ranks->Forget(this);
}

namespace {

struct NamedMode {
  WeightMode mode;
  const char* name;
};
constexpr NamedMode kModes[] = {
    {WeightMode::kAsStored, "as-stored"}, {WeightMode::kQ8, "q8"}, {WeightMode::kQ4, "q4"}};

}  // namespace

std::string NameOf(WeightMode mode) {
  for (const NamedMode& named : kModes) {
    if (named.mode == mode) return named.name;
  }
  PMKVQ_CHECK_MSG(false, "unknown weight mode");
  return "";
}

std::vector<std::string> WeightModeNames() {
  std::vector<std::string> names;
  for (const NamedMode& named : kModes) names.emplace_back(named.name);
  return names;
}

WeightMode ParseWeightMode(const std::string& name) {
  for (const NamedMode& named : kModes) {
    if (name == named.name) return named.mode;
  }
  throw InvalidInput("--weights", fmt::format("found '{}', expected one of {}", name,
                                              fmt::join(WeightModeNames(), ", ")));
}

WeightFormat FormatInMode(WeightMode mode, WeightFormat stored) {
  if (mode == WeightMode::kAsStored) return stored;
  const WeightFormat made = mode == WeightMode::kQ8 ? WeightFormat::kQ8 : WeightFormat::kQ4_1;
  constexpr int64_t kValues = 256;
  return 4 * RowBytes(made, kValues) <= 3 * RowBytes(stored, kValues) ? made : stored;
}

std::shared_ptr<const Model> Model::Load(const std::string& folder, const ModelOptions& options) {
  if (options.ranks != nullptr && options.ranks->is_leader()) {
    return options.ranks->Load(folder, options);
  }
  return FromCheckpoint(Checkpoint::Open(folder), options);
}

std::shared_ptr<const Model> Model::FromCheckpoint(Checkpoint checkpoint,
                                                   const ModelOptions& options) {
  const std::shared_ptr<Model> model(new Model());
  model->impl_ =
      std::make_unique<Impl>(std::make_shared<const Checkpoint>(std::move(checkpoint)), options);
  return model;
}

std::shared_ptr<const Model> Model::WithWeights(std::map<std::string, Tensor> replacements,
                                                int num_threads) const {
  RefuseShards(*this, "other weights");
  ModelOptions options;
  options.weights = weights();
  options.device = device();
  options.num_threads = num_threads;
  const std::shared_ptr<Model> model(new Model());
  model->impl_ = std::make_unique<Impl>(impl_->owned_checkpoint, options, std::move(replacements));
  return model;
}

const ModelConfig& Model::config() const { return impl_->checkpoint.config(); }
const Checkpoint& Model::checkpoint() const { return impl_->checkpoint; }
const ModelShard* Model::shard() const { return impl_->shard.get(); }
ModelRanks* Model::ranks() const { return impl_->ranks; }
WeightMode Model::weights() const { return impl_->weights; }
bool Model::draws_tokens() const {
  return impl_->device != nullptr && config().vocab_size <= DeviceSampler::kMostVocabulary;
}
const DeviceModel* Model::device_model() const { return impl_->device.get(); }
DeviceId Model::device() const {
  return impl_->device == nullptr ? DeviceId{} : impl_->device->device();
}
const WeightConversion& Model::conversion() const { return impl_->conversion; }
std::vector<Model::NamedMatrix> Model::matrices() const { return impl_->matrices; }
const RopeTable& Model::rope() const { return impl_->ropes.global(); }
const RopeTable& Model::rope(int64_t layer) const { return impl_->ropes.Of(layer); }
float Model::embedding_factor() const { return impl_->embedding_factor; }
const WeightView& Model::embedding() const { return impl_->parts.embedding; }
const WeightView& Model::output_head() const { return impl_->parts.output_head; }
const std::vector<float>& Model::final_norm() const { return impl_->parts.final_norm; }

KvGeometry Model::kv_geometry() const { return KvGeometryOf(config()); }

int64_t Model::weight_bytes() const { return impl_->weight_bytes; }

const Attention& Model::attention(int64_t layer) const {
  PMKVQ_CHECK(layer >= 0 && layer < config().num_layers);
  return *impl_->parts.attentions[static_cast<size_t>(layer)];
}

const Mlp& Model::mlp(int64_t layer) const {
  PMKVQ_CHECK(layer >= 0 && layer < config().num_layers);
  return *impl_->parts.mlps[static_cast<size_t>(layer)];
}

double Model::attention_scale() const { return attention(0).scale(); }

}  // namespace pmkvq
