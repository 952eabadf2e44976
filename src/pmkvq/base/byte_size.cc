#include "pmkvq/base/byte_size.h"

#include <fmt/format.h>

#include <cctype>
#include <charconv>
#include <cmath>

#include "pmkvq/base/error.h"

namespace pmkvq {

int64_t ParseByteSize(std::string_view text, const std::string& what) {
  const auto fail = [&]() -> InvalidInput {
    return {what, fmt::format("'{}' is not a byte size; expected a number with an optional "
                              "suffix K, M, G, KiB, MiB, GiB (6MiB, say)",
                              text)};
  };
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || !std::isfinite(value) || value < 0) throw fail();
  std::string suffix;
  for (const char* p = end; p != text.data() + text.size(); ++p) {
    if (*p != ' ') suffix += static_cast<char>(std::tolower(static_cast<unsigned char>(*p)));
  }
  double unit = 1;
  if (suffix == "k" || suffix == "kib") {
    unit = 1024.0;
  } else if (suffix == "m" || suffix == "mib") {
    unit = 1024.0 * 1024;
  } else if (suffix == "g" || suffix == "gib") {
    unit = 1024.0 * 1024 * 1024;
  } else if (suffix == "kb") {
    unit = 1e3;
  } else if (suffix == "mb") {
    unit = 1e6;
  } else if (suffix == "gb") {
    unit = 1e9;
  } else if (!suffix.empty() && suffix != "b") {
    throw fail();
  }
  const double bytes = value * unit;
  if (bytes > 9e18 || (unit == 1 && bytes != std::floor(bytes))) throw fail();
  return static_cast<int64_t>(bytes);
}

std::string FormatByteSize(int64_t bytes) {
  const double value = static_cast<double>(bytes);
  if (bytes < 1024) return fmt::format("{} B", bytes);
  if (bytes < 1024 * 1024) return fmt::format("{:.4g} KiB", value / 1024);
  if (bytes < int64_t{1} << 30) return fmt::format("{:.4g} MiB", value / (1024 * 1024));
  return fmt::format("{:.4g} GiB", value / (1024.0 * 1024 * 1024));
}

}  // namespace pmkvq
