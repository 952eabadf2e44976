// The server's side of TLS: certificate and key, read from files.
#pragma once

#include <memory>
#include <string>

struct ssl_ctx_st;  // OpenSSL's SSL_CTX.

namespace pmkvq::server {

using TlsContext = std::shared_ptr<ssl_ctx_st>;

// TLS 1.2 and newer, HTTP/1.1 as the only protocol, no renegotiation, no sessions kept in memory.
//
// `cert_file`: PEM, the server's certificate first, then those that lead to the root. `key_file`:
// its private key, PEM, without a passphrase. Throws IoError or InvalidInput naming the file: not
// there, not readable, not PEM, a key of another certificate, one too weak for TLS.
TlsContext LoadTls(const std::string& cert_file, const std::string& key_file);

}  // namespace pmkvq::server
