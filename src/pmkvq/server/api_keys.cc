#include "pmkvq/server/api_keys.h"

#include <fmt/format.h>
#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <algorithm>

#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"

namespace pmkvq::server {
namespace {

constexpr size_t kShortestKey = 16;
constexpr size_t kLongestKey = 512;

std::array<unsigned char, 32> DigestOf(std::string_view key) {
  std::array<unsigned char, 32> digest{};
  SHA256(reinterpret_cast<const unsigned char*>(key.data()), key.size(), digest.data());
  return digest;
}

}  // namespace

ApiKeys ApiKeys::FromFile(const std::string& path) {
  const std::string text = ReadFile(path);
  ApiKeys keys;
  int line_number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string_view line = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    ++line_number;
    while (!line.empty() && (line.back() == ' ' || line.back() == '\r' || line.back() == '\t')) {
      line.remove_suffix(1);
    }
    if (line.empty() || line.front() == '#') continue;
    keys.Add(line, fmt::format("{}:{}", path, line_number));
  }
  if (keys.empty()) throw InvalidInput(path, "found no key, expected one a line");
  return keys;
}

void ApiKeys::Add(std::string_view key, const std::string& where) {
  const bool is_visible =
      std::all_of(key.begin(), key.end(), [](char c) { return c > ' ' && c < '\x7f'; });
  if (key.size() < kShortestKey || key.size() > kLongestKey || !is_visible) {
    throw InvalidInput(where, fmt::format("found a key of {} bytes, expected {} to {} bytes of "
                                          "visible ASCII",
                                          key.size(), kShortestKey, kLongestKey));
  }
  digests_.push_back(DigestOf(key));
}

std::optional<std::string> ApiKeys::Check(std::string_view key) const {
  const Digest given = DigestOf(key);
  bool is_known = false;
  for (const Digest& digest : digests_) {
    is_known |= CRYPTO_memcmp(digest.data(), given.data(), given.size()) == 0;
  }
  if (!is_known) return std::nullopt;
  return fmt::format("{:02x}{:02x}{:02x}{:02x}", given[0], given[1], given[2], given[3]);
}

}  // namespace pmkvq::server
