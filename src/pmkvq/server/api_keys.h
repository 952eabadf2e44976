// Keys of clients. Kept as SHA-256 digests only, and compared without an early exit.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace pmkvq::server {

class ApiKeys {
 public:
  // No keys: everybody is let in.
  ApiKeys() = default;
  // One key a line; blank lines and lines that begin with # are skipped. Throws IoError, and
  // InvalidInput for a file without keys or with a key of less than 16 or more than 512 bytes, or
  // of bytes other than visible ASCII. Errors never quote a key.
  static ApiKeys FromFile(const std::string& path);
  void Add(std::string_view key, const std::string& where);

  bool empty() const { return digests_.empty(); }
  // The name of the key in logs, 8 hex digits of its digest; nothing for a wrong key.
  std::optional<std::string> Check(std::string_view key) const;

 private:
  using Digest = std::array<unsigned char, 32>;
  std::vector<Digest> digests_;
};

}  // namespace pmkvq::server
