#include "pmkvq/model/device/device_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <span>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/float16.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/base/parallel.h"
#include "pmkvq/kernels/gemm/code_tile.h"
#include "pmkvq/model/blocks/attention_gqa.h"
#include "pmkvq/model/blocks/attention_mla.h"
#include "pmkvq/model/blocks/mlp_dense.h"
#include "pmkvq/model/blocks/mlp_moe.h"
#include "pmkvq/tensor/device/device_info.h"
#include "pmkvq/tensor/device/stream.h"

namespace pmkvq {
namespace {

// What a matrix of this format is on the device, as plain rows.
DType TypeOf(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
      return DType::kF32;
    case WeightFormat::kBF16:
      return DType::kBF16;
    default:
      return DType::kF16;
  }
}
bool IsPlain(WeightFormat format) { return LayoutOf(format).block_values == 1; }

// The one type of all, or F32.
DType CommonType(std::span<const WeightView* const> matrices) {
  const DType first = TypeOf(matrices.front()->format);
  for (const WeightView* const matrix : matrices) {
    if (TypeOf(matrix->format) != first) return DType::kF32;
  }
  return first;
}

// Whether products read the codes of all of them. Rows of each fill tiles of 16.
bool HaveCodes(std::span<const WeightView* const> matrices) {
  return std::all_of(matrices.begin(), matrices.end(), [](const WeightView* matrix) {
    return HasDeviceCodes(matrix->format) && matrix->rows % code_tile::kRows == 0 &&
           matrix->cols % 8 == 0;
  });
}

}  // namespace

// What configs may ask for beyond the steps that there are.
void CheckDeviceModel(const ModelConfig& config, DeviceId device) {
  if (config.moe && config.moe->num_chosen > kMostChosenOnDevice) {
    throw Unsupported(
        NameOf(device),
        fmt::format("{}: found {} experts for each token, expected at most {}; use "
                    "--device cpu",
                    config.architecture, config.moe->num_chosen, kMostChosenOnDevice));
  }
  Query(device);                         // Says what is wrong with the device, if something is.
  constexpr int64_t kMostHeadDim = 256;  // HeadRows
  if (!config.mla && config.head_dim > kMostHeadDim) {
    throw Unsupported(NameOf(device),
                      fmt::format("{}: found heads of {} values, expected at most {}; use --device "
                                  "cpu",
                                  config.architecture, config.head_dim, kMostHeadDim));
  }
}

// Goes through all weights twice in the same order: first places are counted, then, with memory,
// they are filled.
class DeviceWeights::Packer {
 public:
  Packer(DeviceId device, int num_threads)
      : device_(device), num_threads_(num_threads), stream_(device) {}

  void Fill(Buffer& arena) {
    arena_ = &arena;
    used_ = 0;
    for (Staging& staging : staging_) {
      staging.memory = std::make_unique<PinnedBuffer>(device_, kStagingBytes);
      staging.copied = std::make_unique<StreamEvent>(device_);
      staging.copied->Record(stream_);
    }
  }
  // After all weights.
  void Finish() {
    Flush();
    stream_.Synchronize();
  }
  size_t used() const { return used_; }

  // Of a product: quantised weights stay what they are.
  DeviceMatrix Stack(std::initializer_list<const WeightView*> matrices) {
    const std::span<const WeightView* const> all(matrices.begin(), matrices.size());
    return HaveCodes(all) ? StackCodes(all) : StackRows(all);
  }

  DeviceMatrix StackCodes(std::span<const WeightView* const> all) {
    DeviceMatrix stacked;
    stacked.type = DType::kF16;
    stacked.k = all.front()->cols;
    for (size_t first = 0; first < all.size();) {
      PMKVQ_CHECK(stacked.num_parts < DeviceMatrix::kMostParts);
      DeviceCodes& part = stacked.codes[stacked.num_parts++];
      part.format = all[first]->format;
      part.k = stacked.k;
      size_t end = first;
      size_t num_bytes = 0;
      for (; end < all.size() && all[end]->format == part.format; ++end) {
        part.n += all[end]->rows;
        num_bytes += DeviceCodesBytes(part.format, all[end]->rows, part.k);
      }
      part.data = Begin(num_bytes);
      for (; first < end; ++first) {
        if (arena_ == nullptr) continue;
        std::vector<std::byte> tiles(DeviceCodesBytes(part.format, all[first]->rows, part.k));
        LayOutCodes(*all[first], tiles.data(), num_threads_);
        Append(tiles.data(), tiles.size());
      }
      stacked.n += part.n;
    }
    return stacked;
  }

  // As plain rows.
  DeviceMatrix StackRows(std::span<const WeightView* const> all) {
    return StackRowsAs(CommonType(all), all);
  }
  DeviceMatrix StackRowsAs(DType type, std::span<const WeightView* const> all) {
    DeviceMatrix stacked;
    stacked.type = type;
    stacked.k = all.front()->cols;
    for (const WeightView* const matrix : all) stacked.n += matrix->rows;
    const size_t row_bytes = static_cast<size_t>(stacked.k) * SizeOf(stacked.type);
    stacked.data = Begin(static_cast<size_t>(stacked.n) * row_bytes);
    if (arena_ == nullptr) return stacked;
    for (const WeightView* const matrix : all) CopyRows(*matrix, stacked.type, row_bytes);
    return stacked;
  }

  // Vectors one after the other; null where all are empty.
  const float* Vector(std::initializer_list<const std::vector<float>*> vectors) {
    size_t count = 0;
    for (const std::vector<float>* const vector : vectors) count += vector->size();
    if (count == 0) return nullptr;
    std::byte* const data = Begin(count * sizeof(float));
    if (arena_ != nullptr) {
      for (const std::vector<float>* const vector : vectors) {
        Append(reinterpret_cast<const std::byte*>(vector->data()), vector->size() * sizeof(float));
      }
    }
    return reinterpret_cast<const float*>(data);
  }

 private:
  static constexpr size_t kStagingBytes = size_t{32} << 20;
  struct Staging {
    std::unique_ptr<PinnedBuffer> memory;
    std::unique_ptr<StreamEvent> copied;
  };

  // The next place, which Append then fills.
  std::byte* Begin(size_t num_bytes) {
    constexpr size_t kAlign = 256;
    if (arena_ != nullptr) Flush();
    target_ = arena_ == nullptr ? nullptr : arena_->data() + used_;
    std::byte* const place = target_;
    used_ += (num_bytes + kAlign - 1) / kAlign * kAlign;
    return place;
  }

  void CopyRows(const WeightView& matrix, DType type, size_t row_bytes) {
    const bool is_same = IsPlain(matrix.format) && TypeOf(matrix.format) == type;
    if (is_same && matrix.pair_rows == 0) {
      Append(matrix.data, matrix.num_bytes());
      return;
    }
    if (is_same) {
      for (int64_t row = 0; row < matrix.rows; ++row) {
        Append(matrix.data + static_cast<size_t>(matrix.StoredRow(row)) * row_bytes, row_bytes);
      }
      return;
    }
    constexpr int64_t kRowsAtOnce = 1024;
    PMKVQ_CHECK(type == DType::kF32 || type == DType::kF16);
    std::vector<std::byte> rows(static_cast<size_t>(std::min(kRowsAtOnce, matrix.rows)) *
                                row_bytes);
    for (int64_t first = 0; first < matrix.rows; first += kRowsAtOnce) {
      const int64_t count = std::min(kRowsAtOnce, matrix.rows - first);
      ParallelForRanges(num_threads_, count, 16, [&](int64_t begin, int64_t end) {
        std::vector<float> values(static_cast<size_t>(matrix.cols));
        for (int64_t row = begin; row < end; ++row) {
          std::byte* const out = rows.data() + static_cast<size_t>(row) * row_bytes;
          ExpandRow(matrix, first + row, values.data());
          if (type == DType::kF32) {
            std::memcpy(out, values.data(), row_bytes);
          } else {
            for (size_t i = 0; i < values.size(); ++i)
              reinterpret_cast<F16*>(out)[i] = ToF16(values[i]);
          }
        }
      });
      Append(rows.data(), static_cast<size_t>(count) * row_bytes);
    }
  }

  // Two stagings take turns: one is filled while the other one is copied.
  void Append(const std::byte* data, size_t num_bytes) {
    while (num_bytes > 0) {
      const size_t count = std::min(num_bytes, kStagingBytes - staged_);
      if (staged_ == 0) staging_[turn_].copied->Synchronize();
      std::memcpy(staging_[turn_].memory->data() + staged_, data, count);
      staged_ += count;
      data += count;
      num_bytes -= count;
      if (staged_ == kStagingBytes) Flush();
    }
  }
  void Flush() {
    if (staged_ == 0) return;
    CancelPoint();
    Staging& staging = staging_[turn_];
    CopyToDevice(stream_, target_, staging.memory->data(), staged_);
    staging.copied->Record(stream_);
    target_ += staged_;
    staged_ = 0;
    turn_ ^= 1;
  }

  DeviceId device_;
  int num_threads_;
  Stream stream_;
  Buffer* arena_ = nullptr;
  size_t used_ = 0;
  std::byte* target_ = nullptr;
  std::array<Staging, 2> staging_;
  size_t staged_ = 0;
  size_t turn_ = 0;
};

void DeviceWeights::PackAttention(const AttentionGqa& attention, Packer& packer,
                                  DeviceBlockWeights& block) {
  const AttentionGqaWeights& a = attention.weights();
  block.attn_norm = packer.Vector({&a.norm});
  block.qkv = packer.Stack({&a.q, &a.k, &a.v});
  block.qkv_bias = packer.Vector({&a.q_bias, &a.k_bias, &a.v_bias});
  block.q_norm = packer.Vector({&a.q_norm});
  block.k_norm = packer.Vector({&a.k_norm});
  block.o = packer.Stack({&a.o});
  block.o_bias = packer.Vector({&a.o_bias});
  block.attn_post_norm = packer.Vector({&a.post_norm});
}

void DeviceWeights::PackLatentAttention(const AttentionMla& attention, const ModelConfig& config,
                                        Packer& packer, DeviceBlockWeights& block) {
  const AttentionMlaWeights& a = attention.weights();
  const MlaConfig& mla = *config.mla;
  DeviceMlaWeights& to = block.mla.emplace();
  block.attn_norm = packer.Vector({&a.norm});
  to.q_kv_a = packer.Stack({mla.query_rank > 0 ? &a.q_a : &a.q, &a.kv_a});
  to.q_a_norm = packer.Vector({&a.q_a_norm});
  if (mla.query_rank > 0) to.q_b = packer.Stack({&a.q_b});
  to.kv_a_norm = packer.Vector({&a.kv_a_norm});
  to.scale = static_cast<float>(attention.scale());
  const auto plain = [&](const WeightView& matrix) {
    const WeightView* const one[] = {&matrix};
    return packer.StackRows(one);
  };
  const int64_t heads = config.num_heads;
  const int64_t r = mla.latent;
  if (mla.split_up) {
    const DeviceMatrix keys = plain(a.k_b);
    const DeviceMatrix values = plain(a.v_b);
    to.absorb = {keys.data, keys.type, true, heads, r, mla.nope_dim, r * mla.nope_dim};
    to.values = {values.data, values.type, true, heads, mla.value_dim, r, r * mla.value_dim};
  } else {
    const DeviceMatrix both = plain(a.kv_b);
    const int64_t stride = (mla.nope_dim + mla.value_dim) * r;
    const size_t skipped = static_cast<size_t>(mla.nope_dim * r) * SizeOf(both.type);
    const std::byte* const values = both.data == nullptr ? nullptr : both.data + skipped;
    to.absorb = {both.data, both.type, false, heads, r, mla.nope_dim, stride};
    to.values = {values, both.type, true, heads, mla.value_dim, r, stride};
  }
  block.o = packer.Stack({&a.o});
}

void DeviceWeights::PackMlp(const MlpDense& mlp, Packer& packer, DeviceBlockWeights& block) {
  const MlpDenseWeights& m = mlp.weights();
  block.mlp_norm = packer.Vector({&m.norm});
  block.mlp_post_norm = packer.Vector({&m.post_norm});
  block.gate_up = packer.Stack({&m.gate, &m.up});
  block.down = packer.Stack({&m.down});
}

// Experts have 16 bits: their products read rows of any of them.
void DeviceWeights::PackExperts(const MlpMoe& mlp, const ModelConfig& config, Packer& packer,
                                DeviceBlockWeights& block) {
  const MlpMoeWeights& m = mlp.weights();
  DeviceMoeWeights& to = block.moe.emplace();
  block.mlp_norm = packer.Vector({&m.norm});
  const WeightView* const router[] = {&m.router};
  to.router = packer.StackRowsAs(DType::kF32, router);
  to.router_bias = packer.Vector({&m.router_bias});
  to.rule = mlp.rule();
  to.expert_size = config.moe->expert_size;
  std::vector<const WeightView*> gate_up;
  std::vector<const WeightView*> down;
  for (const MlpMoeWeights::Expert& expert : m.experts) {
    gate_up.push_back(&expert.gate);
    gate_up.push_back(&expert.up);
    down.push_back(&expert.down);
  }
  to.gate_up = packer.StackRows(gate_up);
  to.gate_up.n = 2 * to.expert_size;
  to.down = packer.StackRows(down);
  to.down.n = config.hidden_size;
  if (config.moe->shared_size == 0) return;
  block.gate_up = packer.Stack({&m.shared.gate, &m.shared.up});
  block.down = packer.Stack({&m.shared.down});
}

DeviceWeights::DeviceWeights(const ModelConfig& config, const ModelParts& parts,
                             const RopeTables& ropes, DeviceId device, int num_threads) {
  CheckDeviceModel(config, device);
  const auto refuse_part = [&](const char* part, int64_t layer) {
    throw Unsupported(NameOf(device),
                      fmt::format("block {}: found {} of another kind, expected grouped-query or "
                                  "latent attention, a gated MLP or experts; use --device cpu",
                                  layer, part));
  };
  const bool is_tied = parts.output_head.data == parts.embedding.data;
  Packer packer(device, num_threads);
  const auto pack = [&] {
    const WeightView* const embedding[] = {&parts.embedding};
    embedding_ = packer.StackRows(embedding);
    head_ = is_tied ? embedding_ : packer.Stack({&parts.output_head});
    final_norm_ = packer.Vector({&parts.final_norm});
    frequencies_ = packer.Vector({&ropes.global().frequencies()});
    if (ropes.local() != nullptr) {
      local_frequencies_ = packer.Vector({&ropes.local()->frequencies()});
    }
    blocks_.clear();
    for (int64_t layer = 0; layer < config.num_layers; ++layer) {
      const auto i = static_cast<size_t>(layer);
      DeviceBlockWeights& block = blocks_.emplace_back();
      if (const auto* gqa = dynamic_cast<const AttentionGqa*>(parts.attentions[i].get())) {
        PackAttention(*gqa, packer, block);
      } else if (const auto* mla = dynamic_cast<const AttentionMla*>(parts.attentions[i].get())) {
        PackLatentAttention(*mla, config, packer, block);
      } else {
        refuse_part("attention", layer);
      }
      if (const auto* dense = dynamic_cast<const MlpDense*>(parts.mlps[i].get())) {
        PackMlp(*dense, packer, block);
      } else if (const auto* moe = dynamic_cast<const MlpMoe*>(parts.mlps[i].get())) {
        PackExperts(*moe, config, packer, block);
      } else {
        refuse_part("an MLP", layer);
      }
      block.has_gelu = config.activation != GateActivation::kSilu;
      block.has_local_rope = ropes.IsLocal(layer);
    }
  };
  pack();
  try {
    arena_ = std::make_unique<Buffer>(device, packer.used());
  } catch (const DeviceError&) {
    throw DeviceError(NameOf(device),
                      fmt::format("weights: asked for {} bytes, found {} free; --weights q8 takes "
                                  "about half of BF16's, --device cpu none",
                                  packer.used(), Query(device).free_bytes));
  }
  packer.Fill(*arena_);
  pack();
  packer.Finish();
}

}  // namespace pmkvq
