#include "pmkvq/research/methods/windows.h"

#include <fmt/format.h>

#include <numeric>
#include <vector>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/kv/kv_types.h"

namespace pmkvq {

void DamageKeyChannel(const AffineFormat& format, int64_t first, int64_t count, int64_t head,
                      int64_t channel, SimulatedBlock& block) {
  if (first / kPageTokens == (first + count - 1) / kPageTokens) {
    DamageGroup(format, count, block.head_dim(), block.Key(first, head, count) + channel);
    return;
  }
  std::vector<float> group;
  for (int64_t i = 0; i < count; ++i) group.push_back(block.Key(first + i, head)[channel]);
  DamageGroup(format, count, 1, group.data());
  for (int64_t i = 0; i < count; ++i) {
    block.Key(first + i, head)[channel] = group[static_cast<size_t>(i)];
  }
}

void DamageKeyChannels(const AffineFormat& format, int64_t group, const TokenWindow& window,
                       int64_t num_before, SimulatedBlock& block) {
  PMKVQ_DCHECK(window.block % group == 0);
  const int64_t end = window.QuantizedEnd(block.num_tokens());
  for (int64_t token = window.QuantizedEnd(num_before); token < end; token += group) {
    for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
      for (int64_t channel = 0; channel < block.head_dim(); ++channel) {
        DamageKeyChannel(format, token, group, head, channel, block);
      }
    }
  }
}

void DamageKeyTokens(const AffineFormat& format, int64_t group, const TokenWindow& window,
                     int64_t num_before, SimulatedBlock& block) {
  const int64_t end = window.QuantizedEnd(block.num_tokens());
  for (int64_t token = window.QuantizedEnd(num_before); token < end; ++token) {
    for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
      DamageRow(format, group, block.head_dim(), block.Key(token, head));
    }
  }
}

void DamageValueTokens(const AffineFormat& format, int64_t group, const TokenWindow& window,
                       int64_t num_before, SimulatedBlock& block) {
  const int64_t end = window.QuantizedEnd(block.num_tokens());
  for (int64_t token = window.QuantizedEnd(num_before); token < end; ++token) {
    for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
      DamageRow(format, group, block.head_dim(), block.Value(token, head));
    }
  }
}

int64_t WindowedBytes(const MethodContext& context, const AffineFormat& format, int64_t group,
                      const TokenWindow& window, int64_t num_tokens) {
  const int64_t quantized = window.NumQuantized(num_tokens);
  return AffineBytes(format, quantized * context.geometry.kv_dim(), group) +
         context.FloatBytes(num_tokens - quantized);
}

ByteGrowth GrowthOf(const TokenWindow& keys, const TokenWindow& values) {
  return {1, std::lcm(keys.block, values.block)};
}

SpecKey ResidualKey(std::string fallback) {
  return IntegerKey("residual", 32, 4096, std::move(fallback),
                    "newest tokens at full precision, a multiple of the group");
}

int64_t ReadResidual(const MethodSpec& spec, int64_t otherwise, int64_t group) {
  const int64_t residual = spec.Integer("residual", otherwise);
  if (residual % group == 0) return residual;
  throw InvalidInput("--kv", fmt::format("'{}': residual={}, expected a multiple of the group {}",
                                         spec.text, residual, group));
}

}  // namespace pmkvq
