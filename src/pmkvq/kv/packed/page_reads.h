// Many reads of a device's arena, for which the host waits once a MiB instead of once a page: a
// cache of 32,768 tokens has thousands of pages.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "pmkvq/kernels/kv_quant/fragment_page.h"
#include "pmkvq/tensor/device/stream.h"

namespace pmkvq {

// Threads: those of the cache. The stream must outlive this object.
class PageReads {
 public:
  // `most_bytes`: of all reads together, as far as that is known.
  PageReads(Stream& stream, size_t most_bytes)
      : stream_(stream),
        staging_(stream.device(), std::clamp<size_t>(most_bytes, kLeastBytes, kMostBytes)) {}

  // `bits` 0: bytes as they are, else those of a page, whose layout changes on the way. `out` has
  // them, at the latest, behind Finish.
  void Add(const FragmentPageShape& shape, int bits, const std::byte* from, size_t count,
           std::byte* out) {
    if (used_ + count > staging_.num_bytes()) Finish();
    if (count > staging_.num_bytes()) {  // A page of a great many heads.
      std::vector<std::byte> whole(count);
      CopyToHost(stream_, whole.data(), from, count);
      stream_.Synchronize();
      return Convert(shape, bits, whole.data(), count, out);
    }
    CopyToHost(stream_, staging_.data() + used_, from, count);
    reads_.push_back({shape, bits, used_, count, out});
    used_ += (count + kAlignment - 1) / kAlignment * kAlignment;
  }

  void Finish() {
    if (reads_.empty()) return;
    stream_.Synchronize();
    for (const Read& read : reads_) {
      Convert(read.shape, read.bits, staging_.data() + read.offset, read.count, read.out);
    }
    reads_.clear();
    used_ = 0;
  }

 private:
  static constexpr size_t kAlignment = 64;
  static constexpr size_t kLeastBytes = size_t{64} << 10;
  static constexpr size_t kMostBytes = size_t{1} << 20;

  static void Convert(const FragmentPageShape& shape, int bits, const std::byte* in, size_t count,
                      std::byte* out) {
    if (bits == 0) {
      std::memcpy(out, in, count);
    } else {
      FragmentsToPlanes(shape, bits, in, out);
    }
  }

  struct Read {
    FragmentPageShape shape;
    int bits;
    size_t offset;
    size_t count;
    std::byte* out;
  };
  Stream& stream_;
  PinnedBuffer staging_;
  size_t used_ = 0;
  std::vector<Read> reads_;
};

}  // namespace pmkvq
