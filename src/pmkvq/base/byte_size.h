// Byte sizes as people write them: "6MiB", "512k", "1.5GiB", "4096".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace pmkvq {

// What a number without a unit counts.
enum class BareSize : uint8_t { kBytes, kMib };

// The largest size that is read. Times 4096 sequences it still fits an int64_t.
inline constexpr int64_t kMaxByteSize = int64_t{1} << 50;

// Parses a decimal number ("6", "1.5", "1e1"), blanks, a unit, blanks. Units (case-insensitive):
// B = bytes; K/KiB, M/MiB, G/GiB, T/TiB = powers of 1024; KB, MB, GB, TB = powers of 1000; none:
// what `bare` says. A count of bytes is a whole number; fractions of larger units are rounded down.
// Throws InvalidInput naming `what` (an option name, say), the text found and what is expected;
// sizes above kMaxByteSize are refused as too large.
int64_t ParseByteSize(std::string_view text, const std::string& what,
                      BareSize bare = BareSize::kBytes);

// Whether a text that ParseByteSize reads has a unit.
bool HasByteUnit(std::string_view text);

// "5.25 MiB", "832 KiB", "17 B".
std::string FormatByteSize(int64_t bytes);

}  // namespace pmkvq
