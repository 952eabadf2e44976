#include "pmkvq/model/device/profile_weights.h"

#include <fmt/format.h>

#include <cmath>

#include "pmkvq/base/error.h"
#include "pmkvq/kernels/sequence_rows/sequence_rows.h"
#include "pmkvq/model/device/device_products.h"
#include "pmkvq/tensor/device/device_info.h"

namespace pmkvq {
namespace {

bool MustConvert(const DeviceMatrix& matrix) {
  return matrix.has_codes() || matrix.type == DType::kBF16;
}

size_t F16Bytes(const DeviceMatrix& matrix) {
  constexpr size_t kAlign = 256;
  return (static_cast<size_t>(matrix.n * matrix.k) * sizeof(uint16_t) + kAlign - 1) / kAlign *
         kAlign;
}

// A matrix and its place.
struct Entry {
  const DeviceMatrix* from = nullptr;
  ProfileMatrix* to = nullptr;
};

// The power of two that brings a value into [2^14, 2^15); 1 for 0 and what is not finite.
float FactorFor(float largest) {
  if (!(largest > 0.0f) || !std::isfinite(largest)) return 1.0f;
  int exponent = 0;
  std::frexp(largest, &exponent);
  return std::ldexp(1.0f, std::min(15 - exponent, 120));
}

}  // namespace

ProfileWeights::ProfileWeights(const ModelConfig& config, const DeviceWeights& weights,
                               Stream& stream) {
  blocks_.resize(static_cast<size_t>(config.num_layers));
  std::vector<Entry> entries = {{&weights.output_head(), &head_}};
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const DeviceBlockWeights& from = weights.block(layer);
    ProfileBlockMatrices& to = blocks_[static_cast<size_t>(layer)];
    entries.insert(entries.end(), {{&from.qkv, &to.qkv},
                                   {&from.o, &to.o},
                                   {&from.gate_up, &to.gate_up},
                                   {&from.down, &to.down}});
  }
  size_t num_bytes = 0;
  for (const Entry& entry : entries) {
    has_floats_ |= entry.from->type == DType::kF32;
    if (MustConvert(*entry.from)) num_bytes += F16Bytes(*entry.from);
  }
  if (num_bytes > 0) {
    try {
      arena_ = std::make_unique<Buffer>(stream.device(), num_bytes);
    } catch (const DeviceError&) {
      throw DeviceError(NameOf(stream.device()),
                        fmt::format("weights for calibration, in F16: asked for {} bytes, found {} "
                                    "free; --device cpu takes none",
                                    num_bytes, Query(stream.device()).free_bytes));
    }
  }
  // The largest values of the BF16 matrices.
  Buffer largest_buffer(stream.device(), entries.size() * sizeof(float));
  auto* const largest = reinterpret_cast<float*>(largest_buffer.data());
  FillOnDevice(stream, largest_buffer.data(), 0, largest_buffer.num_bytes());
  for (size_t i = 0; i < entries.size(); ++i) {
    const DeviceMatrix& from = *entries[i].from;
    if (!from.has_codes() && from.type == DType::kBF16) {
      FindLargest(from.data, from.type, from.n * from.k, largest + i, stream);
    }
  }
  std::vector<float> most(entries.size());
  CopyToHost(stream, most.data(), largest_buffer.data(), largest_buffer.num_bytes());
  stream.Synchronize();

  size_t used = 0;
  for (size_t i = 0; i < entries.size(); ++i) {
    const DeviceMatrix& from = *entries[i].from;
    ProfileMatrix& to = *entries[i].to;
    to = {from.data, from.type, 1.0f, from.n, from.k};
    if (!MustConvert(from)) continue;
    std::byte* const place = arena_->data() + used;
    used += F16Bytes(from);
    to.data = place;
    to.type = DType::kF16;
    if (from.has_codes()) {
      ExpandMatrix(from, place, stream);
      continue;
    }
    const float factor = FactorFor(most[i]);
    to.factor = 1.0f / factor;
    ScaleToF16(from.data, from.type, from.n * from.k, factor, place, stream);
  }
  stream.Synchronize();
}

}  // namespace pmkvq
