// Memory of Forwards on a device, and their captured launches. Private to this folder.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "pmkvq/base/aligned.h"
#include "pmkvq/kernels/gemm/device_gemm.h"
#include "pmkvq/kernels/sampling/device_sampler.h"
#include "pmkvq/tensor/device/buffer.h"
#include "pmkvq/tensor/device/captured_work.h"
#include "pmkvq/tensor/device/stream.h"

namespace pmkvq {

// Memory that grows to the largest size asked for. Growing waits for the device.
class GrowingBuffer {
 public:
  void Grow(DeviceId device, size_t num_bytes) {
    if (buffer_ != nullptr && buffer_->num_bytes() >= num_bytes) return;
    buffer_.reset();
    buffer_ = std::make_unique<Buffer>(device, num_bytes);
  }
  template <class T>
  T* As() const {
    return reinterpret_cast<T*>(buffer_->data());
  }
  size_t num_bytes() const { return buffer_ == nullptr ? 0 : buffer_->num_bytes(); }

 private:
  std::unique_ptr<Buffer> buffer_;
};

class DeviceWorkspace {
 public:
  explicit DeviceWorkspace(DeviceId device) : gemm(device) {}

  DeviceGemm gemm;

  GrowingBuffer inputs;     // Token ids, then positions, then picked rows: int32 [input_rows] each.
  GrowingBuffer rotations;  // [rows, D/2, 2]
  GrowingBuffer local_rotations;  // Of blocks with another RoPE, likewise.
  GrowingBuffer x;                // [rows, E], the residual stream
  GrowingBuffer operand;          // Of products.
  GrowingBuffer gated;            // Of the product down, where the one before writes it.
  GrowingBuffer sums;             // What products give.
  GrowingBuffer q, k, v, out;
  // Of a mixture of experts (device_blocks.h).
  GrowingBuffer expert_input, router_logits, routing, expert_operand, expert_sums;
  GrowingBuffer expanded;         // A matrix with codes as plain rows, for prompts.
  GrowingBuffer raw_k;            // For stores that want keys before RoPE.
  GrowingBuffer attention_input;  // For stores that want it.
  GrowingBuffer head_sums;        // [parts * kDecodeRows, V]
  GrowingBuffer logits;           // [kDecodeRows, V] at a time
  int64_t input_rows = 0;
  std::unique_ptr<PinnedBuffer> input_staging;

  // Of the store that captured launches are for.
  uint64_t store_id = 0;
  // By number of rows, and whether tokens are drawn.
  std::map<std::pair<int64_t, bool>, std::unique_ptr<CapturedWork>> captured;

  // Drawing tokens.
  std::unique_ptr<DeviceSampler> sampler;  // Of kDecodeRows rows at a time.
  GrowingBuffer drawn;                     // DeviceDrawn [rows]
  std::unique_ptr<PinnedBuffer> drawn_staging;

  // For stores of the host.
  std::unique_ptr<Stream> stream;
  bool has_factors = false;  // Of the store: key scales.
  GrowingBuffer factors;
  std::vector<size_t> factor_offsets;  // Query factors of each block, then key factors.
  AlignedVector<float> host_q, host_k, host_v, host_out, host_raw_k, host_x, host_attention_input;

  size_t num_bytes() const {
    size_t sum = 0;
    for (const GrowingBuffer* const buffer : {&inputs,
                                              &rotations,
                                              &local_rotations,
                                              &x,
                                              &operand,
                                              &gated,
                                              &sums,
                                              &q,
                                              &k,
                                              &v,
                                              &out,
                                              &raw_k,
                                              &attention_input,
                                              &head_sums,
                                              &logits,
                                              &factors,
                                              &drawn,
                                              &expanded,
                                              &expert_input,
                                              &router_logits,
                                              &routing,
                                              &expert_operand,
                                              &expert_sums}) {
      sum += buffer->num_bytes();
    }
    return sum;
  }
};

}  // namespace pmkvq
