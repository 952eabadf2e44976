#include "pmkvq/base/byte_size.h"

#include <fmt/format.h>

#include <cctype>
#include <charconv>
#include <cmath>

#include "pmkvq/base/error.h"

namespace pmkvq {
namespace {

struct Unit {
  const char* name;
  double bytes;
};

constexpr double kKib = 1024;
constexpr Unit kUnits[] = {
    {"b", 1},
    {"k", kKib},
    {"kib", kKib},
    {"kb", 1e3},
    {"m", kKib* kKib},
    {"mib", kKib* kKib},
    {"mb", 1e6},
    {"g", kKib* kKib* kKib},
    {"gib", kKib* kKib* kKib},
    {"gb", 1e9},
    {"t", kKib* kKib* kKib* kKib},
    {"tib", kKib* kKib* kKib* kKib},
    {"tb", 1e12},
};

// Bytes of the unit in `text`, 0 when there is no such unit.
double BytesOfUnit(std::string_view text, BareSize bare) {
  std::string name;
  for (const char c : text) {
    if (c != ' ') name += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  if (name.empty()) return bare == BareSize::kBytes ? 1 : kKib * kKib;
  for (const Unit& unit : kUnits) {
    if (name == unit.name) return unit.bytes;
  }
  return 0;
}

}  // namespace

int64_t ParseByteSize(std::string_view text, const std::string& what, BareSize bare) {
  const auto fail = [&](const std::string& expected) {
    return InvalidInput(what, fmt::format("found '{}', expected {}", text, expected));
  };
  constexpr char kGrammar[] =
      "a number and a unit (6MiB, say): B, K, M, G, T or KiB, MiB, GiB, TiB (powers of 1024), KB, "
      "MB, GB, TB (powers of 1000)";
  constexpr char kTooLarge[] =
      "a smaller size: this is too large, the most is 1024TiB or 1073741824MiB";
  double value = 0;
  const char* const text_end = text.data() + text.size();
  const auto [end, error] = std::from_chars(text.data(), text_end, value);
  if (error == std::errc::invalid_argument || std::isinf(value) || std::isnan(value)) {
    throw fail(kGrammar);
  }
  const double unit = BytesOfUnit({end, static_cast<size_t>(text_end - end)}, bare);
  if (unit == 0 || text.front() == '-') throw fail(kGrammar);
  if (error != std::errc()) {  // Out of the range of a double, at either end.
    throw fail(text.find("e-") == std::string_view::npos ? kTooLarge : kGrammar);
  }
  const double bytes = value * unit;
  if (bytes > static_cast<double>(kMaxByteSize)) throw fail(kTooLarge);
  if (unit == 1 && bytes != std::floor(bytes)) {
    throw fail(fmt::format("a whole number of bytes: did you mean {}MiB?", text));
  }
  return static_cast<int64_t>(bytes);
}

bool HasByteUnit(std::string_view text) {
  return text.find_first_of("bBkKmMgGtT") != std::string_view::npos;
}

std::string FormatByteSize(int64_t bytes) {
  const double value = static_cast<double>(bytes);
  if (bytes < 1024) return fmt::format("{} B", bytes);
  if (bytes < 1024 * 1024) return fmt::format("{:.4g} KiB", value / 1024);
  if (bytes < int64_t{1} << 30) return fmt::format("{:.4g} MiB", value / (1024 * 1024));
  return fmt::format("{:.4g} GiB", value / (1024.0 * 1024 * 1024));
}

}  // namespace pmkvq
