// Buffers of a computation that runs again and again: memory is kept between runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "pmkvq/base/aligned.h"

namespace pmkvq {

// Gives buffers one after the other, and takes them back in the reverse order, a frame at a time.
// The i-th buffer of a type that is out at a time has the memory of the i-th one before, which
// grows to the largest size asked for; so a steady state allocates nothing. Used by one thread at a
// time.
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
  Real* Take(int64_t count) { return reals_.Take(count, counts_only_); }
  int32_t* TakeInts(int64_t count) { return ints_.Take(count, counts_only_); }

  size_t num_bytes() const { return reals_.num_bytes() + ints_.num_bytes(); }

  // What is taken while a frame lives goes back when it ends.
  class Frame {
   public:
    explicit Frame(Scratch& scratch)
        : scratch_(scratch),
          num_reals_(scratch.reals_.num_taken),
          num_ints_(scratch.ints_.num_taken) {}
    ~Frame() {
      scratch_.reals_.num_taken = num_reals_;
      scratch_.ints_.num_taken = num_ints_;
    }
    Frame(const Frame&) = delete;
    Frame& operator=(const Frame&) = delete;

   private:
    Scratch& scratch_;
    size_t num_reals_;
    size_t num_ints_;
  };

 private:
  template <class Value>
  struct Stack {
    struct Buffer {
      int64_t size = 0;  // Values.
      AlignedVector<Value> values;
    };

    Value* Take(int64_t count, bool counts_only) {
      if (num_taken == buffers.size()) buffers.emplace_back();
      Buffer& buffer = buffers[num_taken++];
      if (buffer.size < count) {
        buffer.size = count;
        if (!counts_only) {
          buffer.values = AlignedVector<Value>();  // First: both at once would double the peak.
          buffer.values.resize(static_cast<size_t>(count));
        }
      }
      return counts_only ? nullptr : buffer.values.data();
    }

    size_t num_bytes() const {
      size_t bytes = 0;
      for (const Buffer& buffer : buffers) bytes += static_cast<size_t>(buffer.size);
      return bytes * sizeof(Value);
    }

    std::vector<Buffer> buffers;
    size_t num_taken = 0;
  };

  Stack<Real> reals_;
  Stack<int32_t> ints_;
  bool counts_only_ = false;
};

}  // namespace pmkvq
