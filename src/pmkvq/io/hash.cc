#include "pmkvq/io/hash.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <new>

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
  if (num_bytes > 0) XXH3_128bits_update(impl_->state, bytes, num_bytes);
}

std::string Hash128::HexDigest() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(impl_->state);
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

}  // namespace pmkvq
