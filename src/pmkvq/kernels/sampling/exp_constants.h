// Constants of exp in double that ref::ExpSums and its vector form share. Internal to sampling/.
#pragma once

namespace pmkvq::internal {

// x = n ln 2 + r: n is rounded by adding and subtracting 1.5 * 2^52; |r| <= ln 2 / 2.
constexpr double kLog2E = 1.4426950408889634;
constexpr double kRoundDouble = 6755399441055744.0;
// ln 2 in two parts. The high one has 32 bits, so that its product with n is exact.
constexpr double kLn2High = 0x1.62e42feep-1;
constexpr double kLn2Low = 0x1.a39ef35793c76p-33;
// 1 / 13!, ..., 1 / 1!, 1: the rest of the series is below 2^-57 for these r.
constexpr double kExpSeries[] = {1.0 / 6227020800,
                                 1.0 / 479001600,
                                 1.0 / 39916800,
                                 1.0 / 3628800,
                                 1.0 / 362880,
                                 1.0 / 40320,
                                 1.0 / 5040,
                                 1.0 / 720,
                                 1.0 / 120,
                                 1.0 / 24,
                                 1.0 / 6,
                                 1.0 / 2,
                                 1.0,
                                 1.0};
// Element i of a block is added to lane i % 16. Lanes are added in pairs: lane j and lane j + 8,
// then j and j + 4, and so on.
constexpr int kExpSumLanes = 16;

}  // namespace pmkvq::internal
