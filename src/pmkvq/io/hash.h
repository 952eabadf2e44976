// The 128-bit hash that identifies models and files in plans. Not cryptographic.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace pmkvq {

// Incremental XXH3-128 with seed 0: the same on every machine and byte order.
class Hash128 {
 public:
  Hash128();
  ~Hash128();
  Hash128(const Hash128&) = delete;
  Hash128& operator=(const Hash128&) = delete;

  // Has a CancelPoint (base/interrupt.h) every 8 MiB.
  void Update(const void* bytes, size_t num_bytes);
  void Update(std::string_view text) { Update(text.data(), text.size()); }

  // 32 lower-case hex digits, high half first, over everything so far.
  std::string HexDigest() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pmkvq
