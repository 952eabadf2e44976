// Constants of the two exponentials that the oracles and their vector forms share. Internal to
// sampling/. Neither uses fused multiply-add, so that all instruction sets give the same bits.
#pragma once

namespace pmkvq::internal {

// In double: ref::ExpSums.

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

// In float, for distances from kLowestFloatDistance to 0: ref::BlockExpSums. The same steps; a
// result is within 1e-7 of exp, relatively, and exp(0) is 1.
constexpr float kLowestFloatDistance = -64.0f;  // 256 weights below it are 2^-84 of their sum.
constexpr float kLog2EFloat = 1.44269504f;
constexpr float kRoundFloat = 12582912.0f;     // 1.5 * 2^23
constexpr float kLn2HighFloat = 0.693359375f;  // 9 bits: its product with n is exact.
constexpr float kLn2LowFloat = -2.12194440e-4f;
// Coefficients of r^6 to r^2: the polynomial of least relative error, 3.1e-9, for |r| <= ln 2 / 2
// that begins with 1 + r, which follows in the last two places.
constexpr float kExpFloatSeries[] = {
    0x1.6a2448p-10f, 0x1.1239d6p-7f, 0x1.5558f2p-5f, 0x1.555492p-3f, 0x1.fffffcp-2f, 1.0f, 1.0f};

// Of 2^r in float for |r| <= 1/2, r^6 to r: within 1.6e-8, relatively. Only for rough sums.
constexpr float kExp2FloatSeries[] = {0x1.41fbap-13f,
                                      0x1.5f3e8p-10f,
                                      0x1.3b2d4ep-7f,
                                      0x1.c6aee8p-5f,
                                      0x1.ebfbdcp-3f,
                                      0x1.62e430p-1f,
                                      1.0f};

// Element i of a block is added to lane i % 16. Lanes are added in pairs: lane j and lane j + 8,
// then j and j + 4, and so on.
constexpr int kExpSumLanes = 16;

}  // namespace pmkvq::internal
