// The matrices of a model on a device as DeviceProfile multiplies them: F32 and F16 as they lie
// there, BF16 and quantised weights in F16. Private to this folder.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "pmkvq/model/device/device_weights.h"
#include "pmkvq/tensor/device/buffer.h"
#include "pmkvq/tensor/device/stream.h"

namespace pmkvq {

// `factor` times [n, k].
struct ProfileMatrix {
  const std::byte* data = nullptr;
  DType type = DType::kF16;  // Or kF32.
  float factor = 1.0f;
  int64_t n = 0;
  int64_t k = 0;
};

struct ProfileBlockMatrices {
  ProfileMatrix qkv, o, gate_up, down;
};

class ProfileWeights {
 public:
  // `weights` must outlive this object. Waits for the stream. Throws DeviceError where memory is
  // short: bytes asked and free.
  ProfileWeights(const ModelConfig& config, const DeviceWeights& weights, Stream& stream);

  const ProfileBlockMatrices& block(int64_t layer) const {
    return blocks_[static_cast<size_t>(layer)];
  }
  const ProfileMatrix& head() const { return head_; }
  // Whether some matrix is F32.
  bool has_floats() const { return has_floats_; }
  size_t num_bytes() const { return arena_ == nullptr ? 0 : arena_->num_bytes(); }

 private:
  ProfileMatrix head_;
  std::vector<ProfileBlockMatrices> blocks_;
  std::unique_ptr<Buffer> arena_;
  bool has_floats_ = false;
};

}  // namespace pmkvq
