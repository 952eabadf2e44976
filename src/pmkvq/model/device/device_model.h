// Model::Forward on a device.
//
// Activations: the residual stream is float. What a product reads is rounded to the type of its
// weights, in two parts (kernels/device_rows/device_rows.h), so that products are nearly those of
// float activations, as on the CPU; sums are float.
//
// A Forward of one token each is captured once per number of rows (tensor/device/captured_work.h)
// and repeated: a launch, an upload of ids and positions, and a wait for the logits. Everything
// else, prompts above all, is launched step by step.
//
// Bits: with chunks of one token a row's bits depend on nothing but its sequence, as on the CPU.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "pmkvq/model/device/device_weights.h"
#include "pmkvq/model/model.h"

namespace pmkvq {

// What a Forward needs on the device besides weights and store; kept between calls.
class DeviceWorkspace;

class DeviceModel {
 public:
  // Copies the weights to the device. Throws as DeviceWeights.
  DeviceModel(const ModelConfig& config, const ModelParts& parts, const RopeTables& ropes,
              float embedding_factor, DeviceId device, int num_threads);
  ~DeviceModel();

  DeviceId device() const { return device_; }
  int64_t weight_bytes() const { return static_cast<int64_t>(weights_.num_bytes()); }
  const DeviceWeights& weights() const { return weights_; }
  float rope_factor() const { return rope_factor_; }  // RopeTable::attention_factor()

  // As Model::Forward. The store's pages lie on this device (KvStore::OnDevice), or on the host:
  // then queries, keys and values are copied there and outputs back, for each block.
  std::vector<ForwardFailure> Forward(std::span<const ForwardChunk> chunks, KvStore& store,
                                      ForwardWorkspace& workspace) const;

 private:
  class Pass;

  const ModelConfig& config_;
  float rope_factor_;
  float local_rope_factor_;
  float embedding_factor_;
  DeviceId device_;
  DeviceWeights weights_;
};

}  // namespace pmkvq
