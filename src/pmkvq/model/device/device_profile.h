// Profile (model/profile.h) on a device: teacher-forced passes over one whole sequence, forward and
// backward, whose results stay there for kernels that measure them.
//
// Products. A matrix of F16, BF16 or codes becomes F16 with one power of two for all of it, which
// is exact but for BF16 values 2^-24 times smaller than the largest one, and for codes, whose
// products with scales are rounded. What it multiplies is F16 with a power of two for
// each row (kernels/sequence_rows): in two parts, 22 significant bits, where the states of a
// sensitivity are computed, in one part, 11 bits, for gradients and where a plan's precision allows
// (kFast). Matrices of F32 are multiplied in F32 throughout.
//
// Memory: the weights a second time, unless they are F16 or F32; activations that the gradient
// reads stay for all blocks, 4 (2 E + (H + 2 Hkv) D + 2 F) bytes for each token and block, and are
// not computed again.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>

#include "pmkvq/kernels/attention/sequence_attention.h"
#include "pmkvq/kernels/sequence_rows/sequence_rows.h"
#include "pmkvq/model/model.h"
#include "pmkvq/tensor/device/stream.h"

namespace pmkvq {

// One block's attention inputs on the device, valid until the visitor's launches have run. Rows
// behind num_tokens are of no sequence; they are finite where the model's weights are.
struct DeviceBlockStates {
  int64_t layer = 0;
  int64_t num_tokens = 0;          // N
  int64_t rows = 0;                // N rounded up to a multiple of 64.
  const float* q = nullptr;        // [Hkv, rows, G, D]
  const float* k = nullptr;        // [rows, Hkv, D]
  const float* v = nullptr;        // [rows, Hkv, D]
  const std::byte* q16 = nullptr;  // q in F16 where the pass is fast, else null.
  GroupedHeads attention;          // Forward's visitor: the output.
  const float* dk = nullptr;       // Backward's visitor: dL/dk [rows, Hkv, D]
  const float* dv = nullptr;       // dL/dv [rows, Hkv, D]
};

class DeviceProfile {
 public:
  using Visitor = std::function<void(const DeviceBlockStates&)>;

  enum class Precision : uint8_t {
    kExact,  // Products of 22 significant bits, attention in F32.
    kFast,   // Products and attention of 11 bits; with weights of F32 the same as kExact.
  };

  // `model` lies on a device (check) and must outlive this object. Throws Unsupported, naming it,
  // for what a config asks for beyond Llama, Mistral, Qwen 2 and Qwen 3 without windows, and
  // DeviceError where memory is short.
  explicit DeviceProfile(const Model& model);
  ~DeviceProfile();
  DeviceProfile(const DeviceProfile&) = delete;
  DeviceProfile& operator=(const DeviceProfile&) = delete;

  // As Profile::Forward: `visitor` (may be null) launches on stream(); the mean next-token cross
  // entropy comes back when all launches have run. Throws InvalidInput naming the block with the
  // first value that is not finite. Without `with_loss` the head and what it needs is left out, and
  // 0 comes back.
  double Forward(std::span<const int32_t> tokens, std::span<const int64_t> positions,
                 Precision precision, bool with_loss, const Visitor& visitor);
  // As Profile::ForwardBackward. The forward pass is kExact; `forward_visitor` (may be null) sees
  // it.
  double ForwardBackward(std::span<const int32_t> tokens, std::span<const int64_t> positions,
                         const Visitor& forward_visitor, const Visitor& visitor);

  // For visitors.
  Stream& stream();
  DeviceGemm& gemm();
  // Of the sequence that runs. Its memory is free between the steps of a block.
  SequenceAttention& attention();
  SequenceHeadShape head_shape() const;
  // F16, or F32 where the output projection is.
  DType ProjectionType(int64_t layer) const;
  // out [rows, E] = attention Wo of a block, without bias, times `attention.scales`; of one part.
  void ProjectAttention(int64_t layer, const ScaledRows& attention, int64_t rows, float* out);

  // Memory of the device that this object has taken.
  int64_t num_bytes() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pmkvq
