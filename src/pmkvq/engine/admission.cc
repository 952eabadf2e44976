#include "pmkvq/engine/admission.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "pmkvq/base/error.h"

namespace pmkvq {
namespace {

// Distances into the future, in tokens of each request, at which the pool is looked at.
constexpr std::array<int64_t, 16> kHorizons = {0,    128,  256,  384,  512,  768,   1024,  1536,
                                               2048, 3072, 4096, 6144, 8192, 12288, 16384, 32768};
constexpr double kUsablePart = 0.97;  // Of the pool.

// Of all blocks, with closed pages at these bits: between two widths as much of the difference as
// the mean width asks for.
double BytesAt(const CacheConfig& config, int64_t num_tokens, double bits) {
  const auto at_width = [&](int width) {
    int64_t bytes = 0;
    for (size_t layer = 0; layer < config.geometry.blocks.size(); ++layer) {
      bytes += BlockBytes(config, layer, num_tokens, width, width);
    }
    return static_cast<double>(bytes);
  };
  for (size_t i = 0; i + 1 < kWidths.size(); ++i) {
    if (bits < kWidths[i + 1]) continue;
    const double part = (bits - kWidths[i + 1]) / (kWidths[i] - kWidths[i + 1]);
    const double high = part > 0 ? at_width(kWidths[i]) : 0;
    return part * high + (1 - part) * at_width(kWidths[i + 1]);
  }
  return at_width(kWidths.back());
}

size_t LeastWidthIndex(int min_bits) {
  return WidthIndex(min_bits == 0 ? kWidths.back() : min_bits);
}

}  // namespace

Admission::Admission(const CacheConfig& config, PoolAdmission kind, double target_bits,
                     int64_t max_len)
    : config_(config), kind_(kind), max_len_(max_len), forecast_(max_len) {
  if (!(target_bits >= 4 && target_bits <= 16)) {
    throw InvalidInput("--kv-target", fmt::format("found {}, expected 4 to 16 bits", target_bits));
  }
  const bool can_be_halved = !config.static_widths && config.floor_bits < config.close_bits;
  if (can_be_halved && config.floor_bits >= target_bits) {
    throw InvalidInput("--kv-floor",
                       fmt::format("found {} bits with --kv-target {}, expected fewer: the floor "
                                   "is the reserve for answers longer than expected",
                                   config.floor_bits, target_bits));
  }
  for (size_t i = 0; i < kWidths.size(); ++i) {
    CacheConfig at_floor = config;
    at_floor.floor_bits = std::min(std::max(kWidths[i], config.floor_bits), config.close_bits);
    const double bits =
        std::min<double>(std::max<double>(target_bits, at_floor.floor_bits), config.close_bits);
    for (int64_t pages = 0; pages <= NumPages(config, max_len); ++pages) {
      // The longest of these; without pages a part of the sink, which is taken whole.
      const int64_t tokens = std::min(max_len, config.sink_tokens + pages * kPageTokens);
      const int64_t floor = FloorBytes(at_floor, tokens);
      bytes_at_floor_[i].push_back(floor);
      bytes_at_target_[i].push_back(config.static_widths ? static_cast<double>(floor)
                                                         : BytesAt(config, tokens, bits));
    }
  }
}

size_t Admission::NumPagesOf(int64_t num_tokens) const {
  return static_cast<size_t>(NumPages(config_, std::min(num_tokens, max_len_)));
}

int64_t Admission::SmallestPool(int64_t num_tokens, int min_bits) const {
  return bytes_at_floor_[LeastWidthIndex(min_bits)][NumPagesOf(num_tokens)];
}

double Admission::ExpectedBytes(std::span<const PoolLoad> loads) const {
  double most = 0;
  for (const int64_t horizon : kHorizons) {
    double sum = 0;
    for (const PoolLoad& load : loads) {
      if (load.num_held + horizon > load.most_held) continue;  // It has ended by then.
      const double lives = forecast_.Survival(load.num_drawn);
      const double still = forecast_.Survival(load.num_drawn + horizon);
      const double part = horizon == 0 ? 1 : lives > 0 ? still / lives : 0;
      sum += part *
             bytes_at_target_[LeastWidthIndex(load.min_bits)][NumPagesOf(load.num_held + horizon)];
    }
    most = std::max(most, sum);
  }
  return most;
}

int64_t Admission::GuaranteedBytes(std::span<const PoolLoad> loads) const {
  int64_t sum = 0;
  for (const PoolLoad& load : loads) sum += SmallestPool(load.most_held, load.min_bits);
  return sum;
}

bool Admission::Admits(std::span<const PoolLoad> running, const PoolLoad& candidate,
                       bool is_guaranteed) const {
  if (running.empty()) return true;
  std::vector<PoolLoad> all(running.begin(), running.end());
  all.push_back(candidate);
  if (is_guaranteed || kind_ == PoolAdmission::kGuaranteed) {
    return GuaranteedBytes(all) <= config_.pool.bytes;
  }
  return ExpectedBytes(all) <= kUsablePart * static_cast<double>(config_.pool.bytes);
}

std::optional<int64_t> ChooseVictim(std::span<const PoolHolder> holders) {
  if (holders.size() < 2) return std::nullopt;
  const auto order = [](const PoolHolder& holder) {
    const bool is_spared = holder.num_preemptions >= kMostPreemptions;
    return std::tuple(is_spared, -holder.priority, holder.num_drawn, -holder.id);
  };
  return std::min_element(
             holders.begin(), holders.end(),
             [&](const PoolHolder& a, const PoolHolder& b) { return order(a) < order(b); })
      ->id;
}

}  // namespace pmkvq
