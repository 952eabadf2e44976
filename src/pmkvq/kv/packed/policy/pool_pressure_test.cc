#include "pmkvq/kv/packed/policy/pool_pressure.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "pmkvq/base/random.h"
#include "pmkvq/kernels/attention/attention.h"

namespace pmkvq {
namespace {

constexpr int64_t kNoLimit = int64_t{1} << 60;
constexpr int kNumCases = 10'000;

// Bytes as at G = 128 in f16, in units of 1/64 of a 16-bit page: metadata is one unit. Prices of a
// page rise with each step, as they do in all measured plans.
PoolStream StreamOf(double scale, int floor_bits = 2) {
  PoolStream stream;
  stream.page_bytes = {64, 33, 17, 9};
  stream.code_bytes = {64, 32, 16, 8};
  stream.sensitivity = {0, scale, 17 * scale, 85 * scale};
  stream.floor_bits = floor_bits;
  return stream;
}

class Cases {
 public:
  explicit Cases(uint64_t seed) : random_(seed) {}

  int64_t Below(int64_t bound) {
    return static_cast<int64_t>(random_.Below(static_cast<uint64_t>(bound)));
  }
  int Width() { return kWidths[random_.Below(kWidths.size())]; }

  std::vector<PoolStream> Streams(int64_t most) {
    std::vector<PoolStream> streams;
    for (int64_t i = 1 + Below(most); i > 0; --i) {
      streams.push_back(StreamOf(std::exp(random_.Uniform() * 3), Width()));
    }
    return streams;
  }

  // Counts that fall with the width, as a history of halvings leaves them.
  PoolRun Run(int64_t most_pages) {
    PoolRun run;
    run.first = Below(3);
    run.end = run.first + Below(most_pages + 1);
    int64_t bound = run.end - run.first;
    for (int64_t& count : run.narrow) bound = count = Below(bound + 1);
    return run;
  }

  PoolSequence Sequence(int64_t key, size_t num_streams, int64_t most_pages) {
    PoolSequence sequence;
    sequence.key = key;
    sequence.sink_tokens = Below(5);
    sequence.weight = Below(2) == 0 ? 1 : 0.5;
    sequence.floor_bits = Width();
    int64_t most_end = 0;
    for (size_t i = 0; i < num_streams; ++i) {
      sequence.runs.push_back(Run(most_pages));
      most_end = std::max(most_end, sequence.runs.back().end);
    }
    sequence.num_tokens = sequence.sink_tokens + (most_end + Below(3)) * kPageTokens + Below(200);
    for (int64_t i = Below(4); i > 1; --i) {
      sequence.others.push_back({sequence.num_tokens + Below(3000), Below(2) == 0 ? 1 : 0.5});
    }
    return sequence;
  }

  std::vector<PoolSequence> Sequences(size_t num_streams) {
    std::vector<PoolSequence> sequences;
    for (int64_t key = 0, count = 1 + Below(4); key < count; ++key) {
      sequences.push_back(Sequence(key, num_streams, 9));
    }
    return sequences;
  }

 private:
  Random random_;
};

int64_t BytesOf(const std::vector<PoolStream>& streams,
                const std::vector<PoolSequence>& sequences) {
  int64_t bytes = 0;
  for (const PoolSequence& sequence : sequences) {
    for (size_t i = 0; i < streams.size(); ++i) {
      const PoolRun& run = sequence.runs[i];
      const std::array<int64_t, 4>& page = streams[i].page_bytes;
      bytes += (run.end - run.first) * page[0];
      for (size_t step = 0; step < kHalvingSteps; ++step) {
        bytes -= run.narrow[step] * (page[step] - page[step + 1]);
      }
    }
  }
  return bytes;
}

// All that can be freed down to the floors; pages below theirs stay.
int64_t MostFreed(const std::vector<PoolStream>& streams,
                  const std::vector<PoolSequence>& sequences) {
  int64_t bytes = 0;
  for (const PoolSequence& sequence : sequences) {
    for (size_t i = 0; i < streams.size(); ++i) {
      const PoolRun& run = sequence.runs[i];
      const int floor = std::max(streams[i].floor_bits, sequence.floor_bits);
      for (size_t step = 0; step < kHalvingSteps && kWidths[step + 1] >= floor; ++step) {
        bytes += (run.end - run.first - run.narrow[step]) *
                 (streams[i].page_bytes[step] - streams[i].page_bytes[step + 1]);
      }
    }
  }
  return bytes;
}

bool IsOrdered(const PoolRun& run) {
  return run.narrow[0] <= run.end - run.first && run.narrow[1] <= run.narrow[0] &&
         run.narrow[2] <= run.narrow[1];
}

TEST(PoolPressureTest, FreesEnoughOrSaysShort) {
  Cases cases(1);
  int num_short = 0;
  for (int i = 0; i < kNumCases; ++i) {
    const std::vector<PoolStream> streams = cases.Streams(4);
    std::vector<PoolSequence> sequences = cases.Sequences(streams.size());
    const std::vector<PoolSequence> before = sequences;
    const int64_t possible = MostFreed(streams, sequences);
    const int64_t must = cases.Below(possible + 20);
    const PoolPayment paid = PoolPressure(streams).Free(must, 0, kNoLimit, sequences);
    ASSERT_EQ(paid.is_enough, must <= possible);
    ASSERT_EQ(BytesOf(streams, before) - BytesOf(streams, sequences), paid.freed_bytes);
    if (paid.is_enough) {
      ASSERT_GE(paid.freed_bytes, must);
      ASSERT_LT(paid.freed_bytes - must, 64) << "more than one page too much";
    } else {
      ++num_short;
      for (size_t s = 0; s < before.size(); ++s) ASSERT_EQ(before[s].runs, sequences[s].runs);
    }
    for (const PoolSequence& sequence : sequences) {
      for (const PoolRun& run : sequence.runs) ASSERT_TRUE(IsOrdered(run));
    }
  }
  EXPECT_GT(num_short, kNumCases / 50);
  EXPECT_LT(num_short, kNumCases / 2);
}

TEST(PoolPressureTest, NothingGoesBelowItsFloor) {
  Cases cases(2);
  for (int i = 0; i < kNumCases; ++i) {
    const std::vector<PoolStream> streams = cases.Streams(4);
    std::vector<PoolSequence> sequences = cases.Sequences(streams.size());
    const std::vector<PoolSequence> before = sequences;
    const int64_t want = cases.Below(2 * MostFreed(streams, sequences) + 1);
    const PoolPayment paid = PoolPressure(streams).Free(0, want, kNoLimit, sequences);
    ASSERT_TRUE(paid.is_enough);
    ASSERT_EQ(paid.freed_bytes >= want, want <= MostFreed(streams, before));
    for (size_t s = 0; s < sequences.size(); ++s) {
      for (size_t r = 0; r < streams.size(); ++r) {
        const int floor = std::max(streams[r].floor_bits, sequences[s].floor_bits);
        for (size_t step = 0; step < kHalvingSteps; ++step) {
          if (kWidths[step + 1] >= floor) continue;
          ASSERT_EQ(sequences[s].runs[r].narrow[step], before[s].runs[r].narrow[step]);
        }
      }
    }
  }
}

// The price of a halving that took place, from the state before.
double HighestPaid(const PoolPressure& policy, const std::vector<PoolSequence>& before,
                   const std::vector<PoolSequence>& after) {
  double highest = 0;
  for (size_t s = 0; s < before.size(); ++s) {
    for (size_t r = 0; r < before[s].runs.size(); ++r) {
      for (size_t step = 0; step < kHalvingSteps; ++step) {
        const PoolRun& run = before[s].runs[r];
        for (int64_t i = run.narrow[step]; i < after[s].runs[r].narrow[step]; ++i) {
          highest = std::max(highest, policy.PriceOf(before[s], r, step, run.first + i));
        }
      }
    }
  }
  return highest;
}

// Of a page and step that was available and was not taken.
double LowestUnpaid(const PoolPressure& policy, const std::vector<PoolStream>& streams,
                    const std::vector<PoolSequence>& after) {
  double lowest = INFINITY;
  for (const PoolSequence& sequence : after) {
    for (size_t r = 0; r < streams.size(); ++r) {
      const PoolRun& run = sequence.runs[r];
      const int floor = std::max(streams[r].floor_bits, sequence.floor_bits);
      for (size_t step = 0; step < kHalvingSteps && kWidths[step + 1] >= floor; ++step) {
        const int64_t available = step == 0 ? run.end - run.first : run.narrow[step - 1];
        for (int64_t i = run.narrow[step]; i < available; ++i) {
          lowest = std::min(lowest, policy.PriceOf(sequence, r, step, run.first + i));
        }
      }
    }
  }
  return lowest;
}

TEST(PoolPressureTest, NothingIsPaidWhileSomethingCheaperIsLeft) {
  Cases cases(3);
  for (int i = 0; i < kNumCases; ++i) {
    const std::vector<PoolStream> streams = cases.Streams(4);
    std::vector<PoolSequence> sequences = cases.Sequences(streams.size());
    const std::vector<PoolSequence> before = sequences;
    const int64_t must = cases.Below(MostFreed(streams, sequences) + 1);
    const PoolPressure policy(streams);
    const PoolPayment paid = policy.Free(must, 0, kNoLimit, sequences);
    ASSERT_DOUBLE_EQ(paid.highest_price, HighestPaid(policy, before, sequences));
    const double unpaid = LowestUnpaid(policy, streams, sequences);
    ASSERT_LE(paid.highest_price, unpaid);
    if (must > 0 && std::isfinite(unpaid)) {
      ASSERT_DOUBLE_EQ(paid.lowest_unpaid, unpaid);
    }
  }
}

TEST(PoolPressureTest, TheOrderOfSequencesDoesNotMatter) {
  Cases cases(4);
  for (int i = 0; i < kNumCases; ++i) {
    const std::vector<PoolStream> streams = cases.Streams(3);
    std::vector<PoolSequence> sequences = cases.Sequences(streams.size());
    // Equal sequences, whose prices are equal.
    sequences.push_back(sequences.front());
    sequences.back().key = std::ssize(sequences);
    std::vector<PoolSequence> reversed(sequences.rbegin(), sequences.rend());
    const int64_t must = cases.Below(MostFreed(streams, sequences) + 1);
    const PoolPressure policy(streams);
    policy.Free(must, 0, kNoLimit, sequences);
    policy.Free(must, 0, kNoLimit, reversed);
    std::reverse(reversed.begin(), reversed.end());
    for (size_t s = 0; s < sequences.size(); ++s) {
      ASSERT_EQ(sequences[s].runs, reversed[s].runs);
    }
  }
}

// The least loss of any halvings of these runs that free `bytes` or more.
double LeastLoss(const PoolPressure& policy, const std::vector<PoolStream>& streams,
                 const PoolSequence& sequence, int64_t bytes) {
  // By bytes freed: the least loss. Pages are chosen one after the other, each at any width.
  std::map<int64_t, double> best = {{0, 0}};
  for (size_t r = 0; r < streams.size(); ++r) {
    const PoolRun& run = sequence.runs[r];
    for (int64_t page = 0; page < run.end - run.first; ++page) {
      std::map<int64_t, double> next = best;
      double loss = 0;
      int64_t freed = 0;
      for (size_t step = 0; step < kHalvingSteps; ++step) {
        if (kWidths[step + 1] < std::max(streams[r].floor_bits, sequence.floor_bits)) break;
        if (page < run.narrow[step]) continue;
        const int64_t step_bytes = streams[r].page_bytes[step] - streams[r].page_bytes[step + 1];
        freed += step_bytes;
        loss +=
            policy.PriceOf(sequence, r, step, run.first + page) * static_cast<double>(step_bytes);
        for (const auto& [old_bytes, old_loss] : best) {
          const auto [found, is_new] = next.try_emplace(old_bytes + freed, old_loss + loss);
          if (!is_new) found->second = std::min(found->second, old_loss + loss);
        }
      }
      best = std::move(next);
    }
  }
  double least = INFINITY;
  for (auto found = best.lower_bound(bytes); found != best.end(); ++found) {
    least = std::min(least, found->second);
  }
  return least;
}

// Six pages of two blocks: what is freed cannot be had for less loss.
TEST(PoolPressureTest, NoOtherChoiceFreesAsMuchForLessLoss) {
  Cases cases(5);
  for (int i = 0; i < kNumCases; ++i) {
    const double ratio = 1 + 0.1 * static_cast<double>(cases.Below(50));
    const std::vector<PoolStream> streams = {StreamOf(1),
                                             StreamOf(ratio, cases.Below(4) == 0 ? 4 : 2)};
    std::vector<PoolSequence> sequences = {cases.Sequence(0, 2, 6)};
    sequences[0].floor_bits = 2;

    const PoolSequence before = sequences[0];
    const int64_t must = cases.Below(MostFreed(streams, sequences) + 1);
    const PoolPressure policy(streams);
    const PoolPayment paid = policy.Free(must, 0, kNoLimit, sequences);
    double loss = 0;
    for (size_t r = 0; r < streams.size(); ++r) {
      const PoolRun& run = before.runs[r];
      for (size_t step = 0; step < kHalvingSteps; ++step) {
        for (int64_t page = run.narrow[step]; page < sequences[0].runs[r].narrow[step]; ++page) {
          loss +=
              policy.PriceOf(before, r, step, run.first + page) *
              static_cast<double>(streams[r].page_bytes[step] - streams[r].page_bytes[step + 1]);
        }
      }
    }
    const double least = LeastLoss(policy, streams, before, paid.freed_bytes);
    ASSERT_LE(loss, least * (1 + 1e-12));
  }
}

TEST(PoolPressureTest, WhatIsWantedOnlyStopsAtTheLimitOfBytesRead) {
  Cases cases(6);
  for (int i = 0; i < kNumCases; ++i) {
    const std::vector<PoolStream> streams = cases.Streams(4);
    std::vector<PoolSequence> sequences = cases.Sequences(streams.size());
    const int64_t possible = MostFreed(streams, sequences);
    const int64_t must = cases.Below(possible + 1) / 4;
    const int64_t limit = cases.Below(500);
    std::vector<PoolSequence> must_only = sequences;
    const PoolPressure policy(streams);
    const int64_t read = policy.Free(must, 0, 0, must_only).read_bytes;
    const PoolPayment paid = policy.Free(must, possible, limit, sequences);
    ASSERT_LE(paid.read_bytes, std::max(read, limit));
    const bool could_pay_more = paid.lowest_unpaid >= 0 && paid.read_bytes + 64 <= limit;
    ASSERT_TRUE(!could_pay_more || paid.freed_bytes >= possible);
  }
}

TEST(PoolPressureTest, ThresholdsAreTheDistancesWherePricesFallBelowTheLevel) {
  Cases cases(7);
  for (int i = 0; i < kNumCases; ++i) {
    const PoolPressure policy(cases.Streams(4));
    const size_t stream =
        static_cast<size_t>(cases.Below(std::ssize(std::vector<int>(policy.num_streams()))));
    const auto step = static_cast<size_t>(cases.Below(3));
    const double level = std::pow(1.06, static_cast<double>(cases.Below(100) - 80));
    const int64_t far = policy.Threshold(stream, step, 1, level);
    ASSERT_LT(policy.Price(stream, step, far, 1), level);
    if (far > 0) {
      ASSERT_GE(policy.Price(stream, step, far - 1, 1), level);
    }
  }
}

// What the text of the interface says: the mean price of the step from 8 to 4 bits is 1.
TEST(PoolPressureTest, PricesAreRelativeToTheMeanStepToFourBits) {
  const PoolPressure policy({StreamOf(3e-9), StreamOf(1e-9)});
  EXPECT_NEAR((policy.Price(0, 1, 0, 1) + policy.Price(1, 1, 0, 1)) / 2, 1, 1e-12);
  EXPECT_NEAR(policy.Price(0, 1, 0, 1) / policy.Price(1, 1, 0, 1), 3, 1e-12);
  EXPECT_NEAR(policy.Price(0, 1, 768, 1) / policy.Price(0, 1, 0, 1), 0.5, 1e-12);
}

TEST(PoolPressureTest, SensitivitiesThatDoNotRiseStillHaveAnOrder) {
  PoolStream flat = StreamOf(1);
  flat.sensitivity = {0, 0, 0, 0};
  const PoolPressure policy({flat, StreamOf(1)});
  EXPECT_GT(policy.Price(0, 0, 0, 1), policy.Price(0, 0, 1000, 1));
  EXPECT_GT(policy.Price(0, 0, 1000, 1), 0);
}

// What two read costs two of them, and is freed once.
TEST(PoolPressureTest, APageOfSeveralReadersHasTheSumOfTheirPrices) {
  const PoolPressure policy({StreamOf(1)});
  PoolSequence shared;
  shared.num_tokens = 1000;
  shared.others = {{5000, 1}, {1000, 0.5}};
  shared.runs = {{0, 4, {}}};
  const double expected = policy.Price(0, 0, 1000 - 2 * kPageTokens, 1.5) +
                          policy.Price(0, 0, 5000 - 2 * kPageTokens, 1);
  EXPECT_DOUBLE_EQ(policy.PriceOf(shared, 0, 0, 1), expected);
  PoolSequence alone;
  alone.key = 1;
  alone.num_tokens = 1000;
  alone.runs = {{0, 4, {}}};
  std::vector<PoolSequence> both = {shared, alone};
  const std::array<int64_t, 4> bytes = StreamOf(1).page_bytes;
  const PoolPayment paid = policy.Free(4 * (bytes[0] - bytes[1]), 0, kNoLimit, both);
  EXPECT_EQ(paid.freed_bytes, 4 * (bytes[0] - bytes[1]));
  EXPECT_EQ(both[0].runs[0].narrow[0], 0) << "those of one reader are cheaper";
  EXPECT_EQ(both[1].runs[0].narrow[0], 4);
}

TEST(WaterLevelTest, RisesAtOnceAndFallsAStepIn32CalmTicks) {
  WaterLevel level;
  EXPECT_EQ(level.value(), 0);
  level.Raise(1);
  EXPECT_NEAR(level.value(), 1.06, 1e-12);
  level.Raise(0.5);
  EXPECT_NEAR(level.value(), 1.06, 1e-12);
  for (int i = 0; i < 100; ++i) level.Tick(97, 100);
  EXPECT_NEAR(level.value(), 1.06, 1e-12) << "a full pool is not calm";
  for (int i = 0; i < 31; ++i) level.Tick(96, 100);
  EXPECT_NEAR(level.value(), 1.06, 1e-12);
  level.Tick(96, 100);
  EXPECT_NEAR(level.value(), 1, 1e-12);
  for (int i = 0; i < 32 * 400; ++i) level.Tick(0, 100);
  EXPECT_EQ(level.value(), 0);
}

TEST(PoolReserveTest, KeepsRoomForWhatComesButNoMoreThanASixteenth) {
  EXPECT_EQ(ReserveOfPool(1000, 100'000).least_bytes, 1000);
  EXPECT_EQ(ReserveOfPool(1000, 100'000).enough_bytes, 1400);
  EXPECT_EQ(ReserveOfPool(1000, 8'000).least_bytes, 500);
}

}  // namespace
}  // namespace pmkvq
