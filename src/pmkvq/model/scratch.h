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
  // `count` values, aligned to kAlignment, of unspecified content; valid until the frame ends in
  // which they were taken.
  Real* Take(int64_t count) {
    if (num_taken_ == buffers_.size()) buffers_.emplace_back();
    AlignedVector<Real>& buffer = buffers_[num_taken_++];
    if (static_cast<int64_t>(buffer.size()) < count) {
      buffer = AlignedVector<Real>();  // First: both at once would double the peak.
      buffer.resize(static_cast<size_t>(count));
    }
    return buffer.data();
  }

  size_t num_bytes() const {
    size_t bytes = 0;
    for (const AlignedVector<Real>& buffer : buffers_) bytes += buffer.capacity() * sizeof(Real);
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
  std::vector<AlignedVector<Real>> buffers_;
  size_t num_taken_ = 0;
};

}  // namespace pmkvq
