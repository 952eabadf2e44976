#include "pmkvq/io/hash.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <new>

#include "pmkvq/base/interrupt.h"

namespace pmkvq {

struct Hash128::Impl {
  XXH3_state_t* state = XXH3_createState();
  ~Impl() { XXH3_freeState(state); }
};

Hash128::Hash128() : impl_(std::make_unique<Impl>()) {
  if (impl_->state == nullptr) throw std::bad_alloc();
  XXH3_128bits_reset(impl_->state);
}

Hash128::~Hash128() = default;

void Hash128::Update(const void* bytes, size_t num_bytes) {
  constexpr size_t kPieceBytes = size_t{8} << 20;  // Some milliseconds, from a slow disk 0.1 s.
  const auto* next = static_cast<const char*>(bytes);
  while (num_bytes > 0) {
    const size_t piece = std::min(num_bytes, kPieceBytes);
    XXH3_128bits_update(impl_->state, next, piece);
    next += piece;
    num_bytes -= piece;
    if (num_bytes > 0) CancelPoint();
  }
}

std::string Hash128::HexDigest() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(impl_->state);
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

}  // namespace pmkvq
