// Buffers of a computation that runs again and again: memory is kept between runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "pmkvq/base/aligned.h"

namespace pmkvq {

// Gives buffers one after the other, and takes them back in the reverse order, a frame at a time.
// The i-th buffer that is out at a time has the memory of the i-th one before, which grows to the
// largest size asked for; so a steady state allocates nothing. Used by one thread at a time.
template <class Real>
class Scratch {
 public:
  Scratch() = default;
  // One that only counts: Take gives null, and num_bytes what the memory would be.
  static Scratch CountOnly() {
    Scratch scratch;
    scratch.counts_only_ = true;
    return scratch;
  }

  // `count` values, aligned to kAlignment, of unspecified content; valid until the frame ends in
  // which they were taken.
  Real* Take(int64_t count) {
    if (num_taken_ == buffers_.size()) buffers_.emplace_back();
    Buffer& buffer = buffers_[num_taken_++];
    if (buffer.size < count) {
      buffer.size = count;
      if (!counts_only_) {
        buffer.values = AlignedVector<Real>();  // First: both at once would double the peak.
        buffer.values.resize(static_cast<size_t>(count));
      }
    }
    return counts_only_ ? nullptr : buffer.values.data();
  }

  size_t num_bytes() const {
    size_t bytes = 0;
    for (const Buffer& buffer : buffers_) bytes += static_cast<size_t>(buffer.size) * sizeof(Real);
    return bytes;
  }

  // What is taken while a frame lives goes back when it ends.
  class Frame {
   public:
    explicit Frame(Scratch& scratch) : scratch_(scratch), num_taken_(scratch.num_taken_) {}
    ~Frame() { scratch_.num_taken_ = num_taken_; }
    Frame(const Frame&) = delete;
    Frame& operator=(const Frame&) = delete;

   private:
    Scratch& scratch_;
    size_t num_taken_;
  };

 private:
  struct Buffer {
    int64_t size = 0;  // Values.
    AlignedVector<Real> values;
  };

  std::vector<Buffer> buffers_;
  bool counts_only_ = false;
  size_t num_taken_ = 0;
};

}  // namespace pmkvq
