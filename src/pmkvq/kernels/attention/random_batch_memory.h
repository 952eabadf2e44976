// For tests: memory of sequences with random pages of chosen widths in one arena, in fragment
// order.
#pragma once

#include <cstring>
#include <random>
#include <vector>

#include "pmkvq/base/float16.h"
#include "pmkvq/kernels/attention/decode_attention.h"

namespace pmkvq {

// Everything between slots is poisoned.
class RandomBatchMemory {
 public:
  // Pointers of the host, or, with what the device has in place of arena(), entries(), ..., for it.
  DecodeOperands operands() const {
    DecodeOperands operands;
    operands.q = reinterpret_cast<const std::byte*>(q_.data());
    operands.arena = arena_.data();
    operands.entries = entries_.data();
    operands.bits = bits_.data();
    operands.num_tokens = num_tokens_.data();
    operands.sink_rests = sink_rests_.data();
    operands.num_sequences = std::ssize(num_tokens_);
    operands.max_pages = max_pages_;
    return operands;
  }
  const std::vector<std::byte>& arena() const { return arena_; }
  const std::vector<PageEntry>& entries() const { return entries_; }
  const std::vector<PageBits>& bits() const { return bits_; }
  const std::vector<int32_t>& num_tokens() const { return num_tokens_; }
  const std::vector<uint32_t>& sink_rests() const { return sink_rests_; }
  const std::vector<F16>& q() const { return q_; }

 protected:
  explicit RandomBatchMemory(DType float_type) : float_type_(float_type) {}

  void Seed(uint32_t seed) {
    random_.seed(seed);
    normal_.reset();
  }
  float Normal() { return normal_(random_); }

  // Offset of so many fresh bytes, in units.
  uint32_t Allocate(size_t num_bytes) {
    constexpr size_t kUnit = fragment::kArenaUnit;
    const size_t at = arena_.size() + kUnit;
    arena_.resize(at + (num_bytes + kUnit - 1) / kUnit * kUnit, std::byte{0xff});
    return static_cast<uint32_t>(at / kUnit);
  }
  std::byte* At(uint32_t units) {
    return arena_.data() + static_cast<size_t>(units) * fragment::kArenaUnit;
  }
  void PutHalf(std::byte* at, float value) {
    const F16 half = ToF16(value);
    const BF16 brain = ToBF16(value);
    std::memcpy(at, float_type_ == DType::kF16 ? static_cast<const void*>(&half) : &brain, 2);
  }

  std::mt19937 random_;
  int64_t max_pages_ = 1;
  std::vector<PageEntry> entries_;
  std::vector<PageBits> bits_;
  std::vector<int32_t> num_tokens_;
  std::vector<uint32_t> sink_rests_;
  std::vector<F16> q_;

 private:
  DType float_type_;
  std::normal_distribution<float> normal_;
  std::vector<std::byte> arena_;
};

}  // namespace pmkvq
