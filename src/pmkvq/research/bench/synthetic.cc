#include "pmkvq/research/bench/synthetic.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <string>
#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/base/parallel.h"
#include "pmkvq/io/weights/hugging_face_names.h"
#include "pmkvq/model/weight_list.h"

namespace pmkvq {
namespace {

constexpr int64_t kTableSize = int64_t{1} << 16;
constexpr int64_t kFillChunk = 512;

Tensor Ones(int64_t size) {
  Tensor tensor(DType::kBF16, {size});
  std::fill_n(tensor.As<BF16>(), size, ToBF16(1.0f));
  return tensor;
}

// A matrix or a bias of made-up values, or a norm of ones.
Tensor SyntheticWeight(const WeightDeclaration& declared, uint64_t seed, int num_threads) {
  const int64_t cols = declared.shape.back();
  if (declared.role == WeightRole::kNorm) return Ones(cols);
  const bool is_matrix = IsMatrix(declared.role);
  Tensor values = SyntheticMatrix(is_matrix ? declared.shape[0] : 1, cols, seed, num_threads);
  if (is_matrix) return values;
  Tensor bias(DType::kBF16, {cols});
  std::copy_n(values.As<BF16>(), cols, bias.As<BF16>());
  return bias;
}

}  // namespace

Tensor SyntheticMatrix(int64_t rows, int64_t cols, uint64_t seed, int num_threads) {
  Tensor tensor(DType::kBF16, {rows, cols});
  BF16* out = tensor.As<BF16>();
  // Exponents of (top / 8, top], around 1 / sqrt(cols).
  const int top = std::ilogb(2.0 / std::sqrt(static_cast<double>(cols))) + 127;
  constexpr int64_t kGrain = int64_t{1} << 18;
  ParallelForRanges(num_threads, rows * cols, kGrain, [&](int64_t begin, int64_t end) {
    Random random(StreamSeed(seed, static_cast<uint64_t>(begin)));
    for (int64_t i = begin; i < end;) {
      uint64_t bits = random.Next();
      for (const int64_t stop = std::min(end, i + 4); i < stop; ++i, bits >>= 16) {
        const auto exponent = static_cast<uint32_t>(top) - (static_cast<uint32_t>(bits >> 8) & 3u);
        const uint32_t sign_and_mantissa = static_cast<uint32_t>(bits) & 0x807fu;
        out[i].bits = static_cast<uint16_t>(sign_and_mantissa | exponent << 7);
      }
    }
  });
  return tensor;
}

std::shared_ptr<const Model> SyntheticModel(const ModelConfig& config, WeightMode weights,
                                            int num_threads, DeviceId device) {
  std::map<std::string, Tensor> tensors;
  uint64_t seed = 0;
  for (const WeightDeclaration& declared : DeclaredWeights(config)) {
    tensors[HuggingFaceName(declared.name)] = SyntheticWeight(declared, ++seed, num_threads);
  }
  return Model::FromCheckpoint(
      Checkpoint::FromMemory("synthetic model", config, std::move(tensors)),
      {weights, num_threads, nullptr, device});
}

SyntheticRows::SyntheticRows(uint64_t seed) : random_(seed) {
  for (int64_t i = 0; i < kTableSize; ++i) {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - random_.Uniform()));
    table_.push_back(
        static_cast<float>(radius * std::cos(2.0 * 3.14159265358979 * random_.Uniform())));
  }
}

void SyntheticRows::Fill(int64_t count, float* out) {
  constexpr int64_t kRun = 128;
  for (int64_t done = 0; done < count; done += kRun) {
    const auto from = static_cast<int64_t>(random_.Below(kTableSize - kRun));
    std::copy_n(table_.data() + from, std::min(kRun, count - done), out + done);
  }
}

CacheConfig UniformCacheConfig(const KvGeometry& geometry, int bits, int64_t max_tokens,
                               int64_t max_sequences, int num_threads, AttentionMode attention) {
  return UniformCacheConfig(geometry, KvBits{bits, bits}, max_tokens, max_sequences, num_threads,
                            attention);
}

CacheConfig UniformCacheConfig(const KvGeometry& geometry, const KvBits& bits, int64_t max_tokens,
                               int64_t max_sequences, int num_threads, AttentionMode attention,
                               QuantAxis k_axis) {
  CacheConfig config;
  config.geometry = geometry;
  config.max_sequences = max_sequences;
  config.k_axis = k_axis;
  config.close_bits = bits.k;
  config.floor_bits = bits.k;
  if (bits.k != bits.v) {
    config.k_bits.assign(geometry.blocks.size(), bits.k);
    config.v_bits.assign(geometry.blocks.size(), bits.v);
    config.static_widths = true;
  }
  config.num_threads = num_threads;
  config.attention = attention;
  for (size_t layer = 0; layer < geometry.blocks.size(); ++layer) {
    config.budget_bytes.push_back(FloorBytes(config, layer, max_tokens));
  }
  return config;
}

void FillCache(PackedKvCache& cache, const KvGeometry& geometry, SequenceId seq, int64_t num_tokens,
               SyntheticRows& rows) {
  std::vector<float> k;
  std::vector<float> v;
  for (int64_t done = 0; done < num_tokens;) {
    const int64_t chunk = std::min(kFillChunk, num_tokens - done);
    const ReserveResult result = cache.Reserve(seq, chunk);
    PMKVQ_CHECK_MSG(result != ReserveResult::kBudgetExhausted, "the budget does not hold the fill");
    cache.BeginForward({{seq, chunk}});
    for (int64_t layer = 0; layer < geometry.num_layers(); ++layer) {
      k.resize(static_cast<size_t>(chunk * geometry.block(layer).k().values()));
      v.resize(static_cast<size_t>(chunk * geometry.block(layer).v().values()));
      rows.Fill(std::ssize(k), k.data());
      rows.Fill(std::ssize(v), v.data());
      cache.Append(layer, k.data(), v.data());
    }
    cache.EndForward();
    done += chunk;
  }
}

int64_t StoredBytes(const PackedKvCache& cache, SequenceId seq) {
  return cache.SequenceStats(seq).bytes;
}

}  // namespace pmkvq
