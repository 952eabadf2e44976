// A packed cache on a CUDA device beside one on the CPU, under the same history.
#pragma once

#include <array>
#include <memory>
#include <utility>

#include "pmkvq/kv/device_kv_store.h"
#include "support/cache_history.h"

namespace pmkvq::testing_support {

// A cache on the device, driven as a model there would.
class DeviceDriver {
 public:
  explicit DeviceDriver(CacheConfig config) : config_(OnCuda(std::move(config))), cache_(config_) {}

  PackedKvCache& cache() { return cache_; }
  // Behind `parts` so many decoding rows without meaning.
  void Forward(const std::vector<CacheDriver::Part>& parts, int64_t dead_rows = 0) {
    Batch batch;
    int64_t decode_rows = 0;
    for (const auto& part : parts) {
      batch.push_back({part.seq, part.num_tokens, part.one_by_one});
      if (part.num_tokens == 1 || part.one_by_one) decode_rows += part.num_tokens;
    }
    DeviceKvStore& device = *cache_.OnDevice();
    device.PrepareRows(decode_rows + dead_rows);
    cache_.BeginForward(batch);
    outputs_.assign(static_cast<size_t>(config_.geometry.num_layers()), {});
    for (int64_t layer = 0; layer < config_.geometry.num_layers(); ++layer) {
      const KvBlockGeometry& block = config_.geometry.block(layer);
      if (!block.has_cache()) continue;
      Rows all;
      int64_t num_rows = 0;
      for (const auto& part : parts) {
        const Rows rows = MakeRows(config_.geometry, part.seed, layer, cache_.NumTokens(part.seq),
                                   part.num_tokens);
        all.q.insert(all.q.end(), rows.q.begin(), rows.q.end());
        all.k.insert(all.k.end(), rows.k.begin(), rows.k.end());
        all.v.insert(all.v.end(), rows.v.begin(), rows.v.end());
        num_rows += part.num_tokens;
      }
      num_rows += dead_rows;
      all.q.resize(static_cast<size_t>(num_rows * block.q_values()), NAN);
      all.k.resize(static_cast<size_t>(num_rows * block.k().values()), NAN);
      all.v.resize(static_cast<size_t>(num_rows * block.v().values()), NAN);
      const DeviceBlockRows rows{Upload(0, all.q), Upload(1, all.k), Upload(2, all.v),
                                 Upload(3, all.q), decode_rows + dead_rows};
      device.LaunchBlock(layer, rows);
      std::vector<float>& out = outputs_[static_cast<size_t>(layer)];
      out.resize(static_cast<size_t>((num_rows - dead_rows) * block.out_values()));
      CopyToHost(device.stream(), out.data(), reinterpret_cast<const std::byte*>(rows.out),
                 out.size() * sizeof(float));
      device.stream().Synchronize();
    }
    cache_.EndForward();
  }
  const std::vector<std::vector<float>>& outputs() const { return outputs_; }

 private:
  static CacheConfig OnCuda(CacheConfig config) {
    config.device = {Device::kCuda, 0};
    return config;
  }
  // No waiting here: memory that is not pinned is copied before CopyToDevice returns, or else
  // waited for. On a device that others use, too, a wait takes milliseconds.
  float* Upload(size_t place, const std::vector<float>& values) {
    std::unique_ptr<Buffer>& buffer = buffers_[place];
    if (buffer == nullptr || buffer->num_bytes() < values.size() * sizeof(float)) {
      buffer = std::make_unique<Buffer>(DeviceId{Device::kCuda, 0}, values.size() * sizeof(float));
    }
    CopyToDevice(cache_.OnDevice()->stream(), buffer->data(), values.data(),
                 values.size() * sizeof(float));
    return reinterpret_cast<float*>(buffer->data());
  }

  CacheConfig config_;
  PackedKvCache cache_;
  std::array<std::unique_ptr<Buffer>, 4> buffers_;
  std::vector<std::vector<float>> outputs_;
};

inline void RunHistory(const CacheConfig& config, uint64_t seed, int num_actions) {
  RunHistoryOn<DeviceDriver>(config, seed, num_actions);
}

}  // namespace pmkvq::testing_support
