// Words of a device that quantising sets where the range of a group does not fit the float type.
// They are read when a Forward ends, so that nobody waits for a page that is quantised.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "pmkvq/tensor/device/buffer.h"
#include "pmkvq/tensor/device/stream.h"

namespace pmkvq {

// Threads: those of the cache. All work is launched on the stream, which must outlive this object.
template <class Owner>
class UnfitWords {
 public:
  UnfitWords(size_t count, Stream& stream)
      : count_(count),
        stream_(stream),
        words_(stream.device(), count * sizeof(uint32_t)),
        staging_(stream.device(), words_.num_bytes()) {
    FillOnDevice(stream_, words_.data(), kFits, words_.num_bytes());
  }

  bool is_full() const { return owners_.size() == count_; }
  bool is_empty() const { return owners_.empty(); }
  // A word that nobody has set. Not when all are in use.
  uint32_t* Take(const Owner& owner) {
    owners_.push_back(owner);
    return reinterpret_cast<uint32_t*>(words_.data()) + (owners_.size() - 1);
  }

  // Launches the copy to the host. Once the stream has come there, Read gives the owners of the
  // words that were set; all words are free then.
  void LaunchCopy() {
    CopyToHost(stream_, staging_.data(), words_.data(), owners_.size() * sizeof(uint32_t));
  }
  std::vector<Owner> Read() {
    const auto* const values = reinterpret_cast<const uint32_t*>(staging_.data());
    std::vector<Owner> unfit;
    for (size_t i = 0; i < owners_.size(); ++i) {
      if (values[i] != UINT32_MAX) unfit.push_back(owners_[i]);
    }
    if (!unfit.empty()) FillOnDevice(stream_, words_.data(), kFits, words_.num_bytes());
    owners_.clear();
    return unfit;
  }

 private:
  static constexpr uint8_t kFits = 0xff;

  size_t count_;
  Stream& stream_;
  Buffer words_;
  PinnedBuffer staging_;
  std::vector<Owner> owners_;  // Of the first words.
};

}  // namespace pmkvq
