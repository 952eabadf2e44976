// What caches take of the device that a model is on.
#pragma once

#include <cstdint>

#include "pmkvq/model/model.h"
#include "pmkvq/research/methods/spec_engine.h"

namespace pmkvq::cli {

// Bytes of the arena of such an engine's cache; 0 where the cache stays on the host. Throws as
// OpenEngine does for options of the cache.
int64_t CacheBytesOnDevice(const Model& model, const SpecEngineOptions& options);

// Bytes that the weights and a cache may take together: of the device where the model is on one,
// else `on_host`, what was available before it was loaded (0: unknown).
int64_t MemoryFor(const Model& model, int64_t on_host);

}  // namespace pmkvq::cli
