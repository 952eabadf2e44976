// Byte sizes as people write them: "6MiB", "512k", "1.5GiB", "4096".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace pmkvq {

// Parses a byte size. Suffixes (case-insensitive): none or B = bytes, K/KiB, M/MiB,
// G/GiB = powers of 1024, KB/MB/GB = powers of 1000. Fractions are allowed with a suffix.
// Throws InvalidInput naming `what` (an option name, say) and the text found.
int64_t ParseByteSize(std::string_view text, const std::string& what);

// "5.25 MiB", "832 KiB", "17 B".
std::string FormatByteSize(int64_t bytes);

}  // namespace pmkvq
