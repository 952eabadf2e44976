#include "pmkvq/research/bench/synthetic.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <string>
#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/base/parallel.h"

namespace pmkvq {
namespace {

constexpr int64_t kTableSize = int64_t{1} << 16;
constexpr int64_t kFillChunk = 512;

Tensor Ones(int64_t size) {
  Tensor tensor(DType::kBF16, {size});
  std::fill_n(tensor.As<BF16>(), size, ToBF16(1.0f));
  return tensor;
}

class WeightMaker {
 public:
  explicit WeightMaker(int num_threads) : num_threads_(num_threads) {}

  void Matrix(const std::string& name, int64_t rows, int64_t cols) {
    weights_[name + ".weight"] = SyntheticMatrix(rows, cols, ++seed_, num_threads_);
  }
  void Norm(const std::string& name, int64_t size) { weights_[name + ".weight"] = Ones(size); }
  void Bias(const std::string& name, int64_t size) {
    Tensor bias = SyntheticMatrix(1, size, ++seed_, 1);
    Tensor flat(DType::kBF16, {size});
    std::copy_n(bias.As<BF16>(), size, flat.As<BF16>());
    weights_[name + ".bias"] = std::move(flat);
  }
  std::map<std::string, Tensor> Take() { return std::move(weights_); }

 private:
  int num_threads_;
  uint64_t seed_ = 0;
  std::map<std::string, Tensor> weights_;
};

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
                                            int num_threads) {
  const int64_t hidden = config.hidden_size;
  const int64_t inner = config.intermediate_size;
  WeightMaker maker(num_threads);
  maker.Matrix("model.embed_tokens", config.vocab_size, hidden);
  maker.Matrix("lm_head", config.vocab_size, hidden);
  maker.Norm("model.norm", hidden);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const std::string block = "model.layers." + std::to_string(layer) + ".";
    const std::string attention = block + "self_attn.";
    maker.Norm(block + "input_layernorm", hidden);
    maker.Matrix(attention + "q_proj", config.q_dim(), hidden);
    maker.Matrix(attention + "k_proj", config.kv_dim(), hidden);
    maker.Matrix(attention + "v_proj", config.kv_dim(), hidden);
    maker.Matrix(attention + "o_proj", hidden, config.q_dim());
    if (config.qkv_bias) {
      maker.Bias(attention + "q_proj", config.q_dim());
      maker.Bias(attention + "k_proj", config.kv_dim());
      maker.Bias(attention + "v_proj", config.kv_dim());
    }
    maker.Norm(block + "post_attention_layernorm", hidden);
    maker.Matrix(block + "mlp.gate_proj", inner, hidden);
    maker.Matrix(block + "mlp.up_proj", inner, hidden);
    maker.Matrix(block + "mlp.down_proj", hidden, inner);
  }
  return Model::FromCheckpoint(Checkpoint::FromMemory("synthetic model", config, maker.Take()),
                               {weights, num_threads});
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

CacheConfig UniformCacheConfig(const UniformKvGeometry& geometry, int bits, int64_t max_tokens,
                               int64_t max_sequences, int num_threads, AttentionMode attention) {
  CacheConfig config;
  config.geometry = geometry;
  config.max_sequences = max_sequences;
  config.close_bits = bits;
  config.floor_bits = bits;
  config.num_threads = num_threads;
  config.attention = attention;
  config.budget_bytes.assign(static_cast<size_t>(geometry.num_layers),
                             BlockBytes(config, 0, max_tokens, bits, bits));
  return config;
}

void FillCache(PackedKvCache& cache, const UniformKvGeometry& geometry, SequenceId seq,
               int64_t num_tokens, SyntheticRows& rows) {
  std::vector<float> k(static_cast<size_t>(kFillChunk * geometry.kv_dim()));
  std::vector<float> v(k.size());
  for (int64_t done = 0; done < num_tokens;) {
    const int64_t chunk = std::min(kFillChunk, num_tokens - done);
    const ReserveResult result = cache.Reserve(seq, chunk);
    PMKVQ_CHECK_MSG(result != ReserveResult::kBudgetExhausted, "the budget does not hold the fill");
    cache.BeginForward({{seq, chunk}});
    for (int64_t layer = 0; layer < geometry.num_layers; ++layer) {
      rows.Fill(chunk * geometry.kv_dim(), k.data());
      rows.Fill(chunk * geometry.kv_dim(), v.data());
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
