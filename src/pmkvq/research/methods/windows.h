// For methods that keep a sink or their newest tokens at full precision: which tokens of a block
// are quantised, and along which axis.
#pragma once

#include <algorithm>
#include <cstdint>

#include "pmkvq/kv/simulated/cache_method.h"
#include "pmkvq/research/methods/affine.h"
#include "pmkvq/research/methods/simulated_method.h"

namespace pmkvq {

// Of n tokens the first `sink` and the newest `recent` are never quantised. The tokens between them
// are quantised in whole blocks of `block` tokens, counted from the sink, as soon as one is full.
// With block = 1 that is a sliding window; with recent = 0 a buffer that is flushed when it is
// full.
struct TokenWindow {
  int64_t sink = 0;
  int64_t recent = 0;
  int64_t block = 1;  // >= 1

  int64_t NumQuantized(int64_t num_tokens) const {
    return std::max<int64_t>(0, num_tokens - sink - recent) / block * block;
  }
  // Tokens sink .. QuantizedEnd - 1 are quantised.
  int64_t QuantizedEnd(int64_t num_tokens) const { return sink + NumQuantized(num_tokens); }
};

// One group: `count` consecutive tokens of one channel of the keys. May straddle pages.
void DamageKeyChannel(const AffineFormat& format, int64_t first, int64_t count, int64_t head,
                      int64_t channel, SimulatedBlock& block);

// What an append that took the block from `num_before` tokens to its present length has pushed out
// of the window. Keys per channel, in groups of `group` tokens (a divisor of window.block); keys,
// or values, per token, in groups of `group` channels.
void DamageKeyChannels(const AffineFormat& format, int64_t group, const TokenWindow& window,
                       int64_t num_before, SimulatedBlock& block);
void DamageKeyTokens(const AffineFormat& format, int64_t group, const TokenWindow& window,
                     int64_t num_before, SimulatedBlock& block);
void DamageValueTokens(const AffineFormat& format, int64_t group, const TokenWindow& window,
                       int64_t num_before, SimulatedBlock& block);

// Bytes of the K, or of the V, of a block with `num_tokens` tokens: quantised tokens in groups of
// `group` values; the other tokens at full precision, without unused room.
int64_t WindowedBytes(const MethodContext& context, const AffineFormat& format, int64_t group,
                      const TokenWindow& window, int64_t num_tokens);

// Of bytes that are a sum of WindowedBytes with these windows. (n + block tokens have as many
// quantised tokens as n and a block more, or none as well; so no part has fewer bytes.)
ByteGrowth GrowthOf(const TokenWindow& keys, const TokenWindow& values);

// The key `residual` of a SPEC: tokens at full precision, up to 4096. Reading it throws
// InvalidInput naming --kv where it is not a multiple of `group`.
SpecKey ResidualKey(std::string fallback);
int64_t ReadResidual(const MethodSpec& spec, int64_t otherwise, int64_t group);

}  // namespace pmkvq
