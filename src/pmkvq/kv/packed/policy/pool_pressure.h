// One pool for the pages of all sequences: whose pages are halved, and how low the pool stands.
//
// Each unit, the K or the V page of 128 tokens of one block of one sequence, has a price for its
// next halving: what the halving costs in the loss (the sensitivity of that block and side), less
// for pages that lie far behind the newest token, per byte that it frees:
//
//   price = (S[w/2] - S[w]) * A(d) * weight / (B[w] - B[w/2])     A(d) = (1 + d/256)^-0.5
//
// d: tokens from the page's end to the sequence's newest token. A(d) is an assumption: attention
// reads old tokens less. It falls strictly, so that not all pages of a block are halved at once.
// A page that several sequences read has the sum of their prices, and is halved once for all.
// Where memory is short, units are halved in order of their prices, cheapest first, whoever owns
// them. So all requests meet the same thresholds, and none of them has to be looked after.
//
// Decisions only, on counts: knows no memory, and does not depend on the order of sequences.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "pmkvq/kv/kv_types.h"

namespace pmkvq {

// A step s brings a page from kWidths[s] to kWidths[s + 1].
inline constexpr size_t kHalvingSteps = kWidths.size() - 1;

// The keys, or the values, of one block.
struct PoolStream {
  std::array<int64_t, 4> page_bytes{};  // Of a page at each width, with metadata, as in kWidths.
  std::array<int64_t, 4> code_bytes{};  // Without: what a halving reads.
  // Loss with all pages at that width; of differences only the ratios count. That of 16 bits is
  // taken as 0: pages are floats there.
  std::array<double, 4> sensitivity{};
  int floor_bits = 2;
};

// Pages of one stream of one sequence, oldest first. The widths never rise with age, so counts tell
// them all.
struct PoolRun {
  int64_t first = 0;  // The pages before it have been freed.
  int64_t end = 0;    // From here on pages are not the policy's: window and open page.
  // How many of the pages from `first` on stand at 8 bits or less, at 4 or less, at 2.
  std::array<int64_t, kHalvingSteps> narrow{};
  bool operator==(const PoolRun&) const = default;
};

// A sequence that reads pages.
struct PoolReader {
  int64_t num_tokens = 0;  // That it holds, or will hold; the newest is the last of them.
  double weight = 1;       // pi: less than 1 is halved earlier.
};

// Pages with the same readers: those that a sequence has to itself, or that several ones share.
struct PoolSequence {
  int64_t key = 0;         // Decides between equal prices; each sequence has its own.
  int64_t num_tokens = 0;  // Of the first reader, as its weight.
  int64_t sink_tokens = 0;
  double weight = 1;
  std::vector<PoolReader> others;  // The price of a page is the sum over all its readers.
  int64_t copies = 1;  // Freed bytes count so often: where reading counts, once for each reader.
  int floor_bits = 2;  // The highest of its readers; the higher one of it and the stream's counts.
  std::vector<PoolRun> runs;  // By stream; empty for a sequence that gives nothing.
};

// What Free did.
struct PoolPayment {
  bool is_enough = true;      // False: less than must_bytes can be freed; nothing was changed.
  int64_t freed_bytes = 0;    // Of pages, with metadata.
  int64_t read_bytes = 0;     // Codes and floats that the halvings read.
  double highest_price = 0;   // Of those paid; 0: none was.
  double lowest_unpaid = -1;  // Of the units that are left; -1: all stand at their floors.
};

class PoolPressure {
 public:
  // Sensitivities are scaled, so that the mean price of a step from 8 to 4 bits at distance 0 is 1.
  explicit PoolPressure(std::vector<PoolStream> streams);

  size_t num_streams() const { return streams_.size(); }
  double Price(size_t stream, size_t step, int64_t distance, double weight) const;
  // Of a page of `sequence`, for all its readers.
  double PriceOf(const PoolSequence& sequence, size_t stream, size_t step, int64_t page) const;
  // The least distance from which on the price is below `level` (> 0).
  int64_t Threshold(size_t stream, size_t step, double weight, double level) const;

  // Halves units, cheapest first, until `must_bytes` are freed; and then until `want_bytes` are,
  // or one more would read beyond `most_read_bytes` in all. Where `must_bytes` cannot be had,
  // nothing changes. Cost O(streams of all sequences + halvings * log).
  PoolPayment Free(int64_t must_bytes, int64_t want_bytes, int64_t most_read_bytes,
                   std::span<PoolSequence> sequences) const;

 private:
  std::vector<PoolStream> streams_;
  // By stream and step: the price at distance 0 and weight 1.
  std::vector<std::array<double, kHalvingSteps>> first_price_;
};

// The price up to which pages are halved at present, on the grid 1.06^k.
class WaterLevel {
 public:
  // Pages of this price were halved.
  void Raise(double price);
  // Once per step of decoding: falls one grid step in 32 steps that find less than 97 % used.
  void Tick(int64_t used_bytes, int64_t pool_bytes);
  double value() const;  // 0: nothing has been halved, or that was long ago.

 private:
  static constexpr int kNone = -1000;
  int step_ = kNone;
  int calm_ticks_ = 0;
};

// How much of the pool is kept free for the tokens to come, so that few halvings have to be done at
// once. Halvings begin below `least_bytes`, and go on until `enough_bytes` are free.
struct PoolReserve {
  int64_t least_bytes = 0;
  int64_t enough_bytes = 0;
};
// `opening_bytes`: of the pages that the next tokens open, and of one chunk of a prompt. No more
// than 1/16 of the pool is kept free for them.
PoolReserve ReserveOfPool(int64_t opening_bytes, int64_t pool_bytes);

}  // namespace pmkvq
