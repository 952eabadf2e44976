#include "pmkvq/kv/packed/policy/pool_pressure.h"

#include <algorithm>
#include <cmath>
#include <queue>
#include <tuple>
#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/attention/attention.h"

namespace pmkvq {
namespace {

constexpr double kAttentionScale = 256;  // Tokens over which A(d) falls.
constexpr double kGrid = 1.06;
constexpr int kTicksPerFall = 32;
constexpr double kUsedPartOfCalm = 0.97;
constexpr double kHysteresis = 0.004;  // Of the pool.

double Attention(int64_t distance) {
  return 1 / std::sqrt(1 + static_cast<double>(distance) / kAttentionScale);
}

// The page that a step would halve next: the oldest that has come to its width. -1: none.
int64_t NextPage(const PoolRun& run, size_t step) {
  const int64_t available = step == 0 ? run.end - run.first : run.narrow[step - 1];
  return run.narrow[step] < available ? run.first + run.narrow[step] : -1;
}

struct Unit {
  double price = 0;
  size_t sequence = 0;
  int64_t key = 0;
  size_t stream = 0;
  size_t step = 0;
  int64_t page = 0;
  // Later in the order of halvings. The queue has the greatest in front.
  bool operator<(const Unit& other) const {
    return std::tie(price, key, stream, step, page) >
           std::tie(other.price, other.key, other.stream, other.step, other.page);
  }
};

}  // namespace

PoolPressure::PoolPressure(std::vector<PoolStream> streams) : streams_(std::move(streams)) {
  double sum = 0;
  int64_t count = 0;
  for (const PoolStream& stream : streams_) {
    std::array<double, kHalvingSteps> prices{};
    for (size_t step = 0; step < kHalvingSteps; ++step) {
      const double before = step == 0 ? 0 : stream.sensitivity[step];
      const int64_t bytes = stream.page_bytes[step] - stream.page_bytes[step + 1];
      PMKVQ_CHECK(bytes > 0);
      prices[step] = (stream.sensitivity[step + 1] - before) / static_cast<double>(bytes);
    }
    // Measured sensitivities may rise nowhere. A step then costs next to nothing, but not nothing:
    // distance still orders its pages.
    const double least = std::max(stream.sensitivity.back(), 1e-300) * 1e-9 /
                         static_cast<double>(stream.page_bytes[0]);
    for (double& price : prices) price = std::max(price, least);
    sum += prices[1];
    ++count;
    first_price_.push_back(prices);
  }
  const double mean = sum / static_cast<double>(std::max<int64_t>(1, count));
  for (auto& prices : first_price_) {
    for (double& price : prices) price /= mean;
  }
}

double PoolPressure::Price(size_t stream, size_t step, int64_t distance, double weight) const {
  return first_price_[stream][step] * Attention(distance) * weight;
}

double PoolPressure::PriceOf(const PoolSequence& sequence, size_t stream, size_t step,
                             int64_t page) const {
  const int64_t end = sequence.sink_tokens + (page + 1) * kPageTokens;
  const auto price_for = [&](int64_t num_tokens, double weight) {
    return Price(stream, step, std::max<int64_t>(0, num_tokens - end), weight);
  };
  double price = price_for(sequence.num_tokens, sequence.weight);
  for (const PoolReader& other : sequence.others) {
    price += price_for(other.num_tokens, other.weight);
  }
  return price;
}

int64_t PoolPressure::Threshold(size_t stream, size_t step, double weight, double level) const {
  const double ratio = first_price_[stream][step] * weight / level;
  const double distance = (ratio * ratio - 1) * kAttentionScale;
  constexpr double kFar = 1e15;
  if (distance >= kFar) return static_cast<int64_t>(kFar);
  auto tokens = static_cast<int64_t>(std::max(0.0, std::floor(distance)));
  while (Price(stream, step, tokens, weight) >= level) ++tokens;  // Rounding.
  return tokens;
}

PoolPayment PoolPressure::Free(int64_t must_bytes, int64_t want_bytes, int64_t most_read_bytes,
                               std::span<PoolSequence> sequences) const {
  PoolPayment payment;
  if (must_bytes <= 0 && want_bytes <= 0) return payment;
  std::vector<Unit> units;
  const auto unit_of = [&](size_t sequence, size_t stream, size_t step) {
    const PoolSequence& owner = sequences[sequence];
    const int64_t page = NextPage(owner.runs[stream], step);
    const int floor = std::max(owner.floor_bits, streams_[stream].floor_bits);
    if (page < 0 || kWidths[step + 1] < floor) return Unit{-1};
    return Unit{PriceOf(owner, stream, step, page), sequence, owner.key, stream, step, page};
  };
  for (size_t sequence = 0; sequence < sequences.size(); ++sequence) {
    for (size_t stream = 0; stream < sequences[sequence].runs.size(); ++stream) {
      for (size_t step = 0; step < kHalvingSteps; ++step) {
        if (const Unit unit = unit_of(sequence, stream, step); unit.price >= 0) {
          units.push_back(unit);
        }
      }
    }
  }
  std::priority_queue<Unit> queue({}, std::move(units));
  std::vector<Unit> paid;
  while (!queue.empty()) {
    const Unit unit = queue.top();
    const PoolStream& stream = streams_[unit.stream];
    const int64_t read = stream.code_bytes[unit.step];
    const bool is_must = payment.freed_bytes < must_bytes;
    if (!is_must &&
        (payment.freed_bytes >= want_bytes || payment.read_bytes + read > most_read_bytes)) {
      break;
    }
    queue.pop();
    PoolRun& run = sequences[unit.sequence].runs[unit.stream];
    const bool opens_next_step = unit.step + 1 < kHalvingSteps && NextPage(run, unit.step + 1) < 0;
    ++run.narrow[unit.step];
    paid.push_back(unit);
    payment.freed_bytes += sequences[unit.sequence].copies *
                           (stream.page_bytes[unit.step] - stream.page_bytes[unit.step + 1]);
    payment.read_bytes += read;
    payment.highest_price = std::max(payment.highest_price, unit.price);
    for (const size_t step : {unit.step, unit.step + 1}) {
      if (step > unit.step && !opens_next_step) continue;
      if (const Unit next = unit_of(unit.sequence, unit.stream, step); next.price >= 0) {
        queue.push(next);
      }
    }
  }
  if (payment.freed_bytes < must_bytes) {
    for (const Unit& unit : paid) --sequences[unit.sequence].runs[unit.stream].narrow[unit.step];
    return {.is_enough = false};
  }
  if (!queue.empty()) payment.lowest_unpaid = queue.top().price;
  return payment;
}

void WaterLevel::Raise(double price) {
  if (price <= 0) return;
  auto step = static_cast<int>(std::ceil(std::log(price) / std::log(kGrid)));
  while (std::pow(kGrid, step) <= price) ++step;
  step_ = std::max(step_, step);
  calm_ticks_ = 0;
}

void WaterLevel::Tick(int64_t used_bytes, int64_t pool_bytes) {
  const bool is_calm =
      static_cast<double>(used_bytes) < kUsedPartOfCalm * static_cast<double>(pool_bytes);
  if (!is_calm || step_ == kNone || ++calm_ticks_ < kTicksPerFall) return;
  calm_ticks_ = 0;
  constexpr int kLowest = -300;  // 2.6e-8: below what any page costs.
  step_ = step_ <= kLowest ? kNone : step_ - 1;
}

double WaterLevel::value() const { return step_ == kNone ? 0 : std::pow(kGrid, step_); }

PoolReserve ReserveOfPool(int64_t opening_bytes, int64_t pool_bytes) {
  const int64_t least = std::min(opening_bytes, pool_bytes / 16);
  return {least, least + static_cast<int64_t>(kHysteresis * static_cast<double>(pool_bytes))};
}

}  // namespace pmkvq
