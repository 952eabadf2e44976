#include "pmkvq/server/http/tls.h"

#include <fmt/format.h>
#include <openssl/err.h>
#include <openssl/ssl.h>

#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"

namespace pmkvq::server {
namespace {

constexpr unsigned char kHttp11[] = "\x08http/1.1";

// The newest reason that OpenSSL gives.
std::string Reason() {
  const char* reason = ERR_reason_error_string(ERR_peek_last_error());
  return reason == nullptr ? "no reason given" : reason;
}

// A passphrase would be asked for on the terminal, which a server does not have.
int NoPassphrase(char*, int, int, void*) { return -1; }

// Clients that offer protocols (HTTP/2 first, mostly) learn that this server speaks HTTP/1.1.
int SelectProtocol(SSL*, const unsigned char** chosen, unsigned char* chosen_size,
                   const unsigned char* offered, unsigned int offered_size, void*) {
  unsigned char* found = nullptr;
  const int result = SSL_select_next_proto(&found, chosen_size, kHttp11, sizeof(kHttp11) - 1,
                                           offered, offered_size);
  *chosen = found;
  return result == OPENSSL_NPN_NEGOTIATED ? SSL_TLSEXT_ERR_OK : SSL_TLSEXT_ERR_ALERT_FATAL;
}

}  // namespace

TlsContext LoadTls(const std::string& cert_file, const std::string& key_file) {
  // Says what OpenSSL would not: which file is missing, a folder, or not readable.
  (void)ReadFile(cert_file);
  (void)ReadFile(key_file);
  ERR_clear_error();
  TlsContext context(SSL_CTX_new(TLS_server_method()), SSL_CTX_free);
  if (context == nullptr) throw InvalidInput("--tls-cert", "TLS cannot be set up: " + Reason());
  SSL_CTX* const tls = context.get();
  SSL_CTX_set_min_proto_version(tls, TLS1_2_VERSION);
  SSL_CTX_set_options(tls, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
  // An idle connection gives its record buffers back: 32 KiB otherwise.
  SSL_CTX_set_mode(tls, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE |
                            SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  SSL_CTX_set_session_cache_mode(tls, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_alpn_select_cb(tls, SelectProtocol, nullptr);
  SSL_CTX_set_default_passwd_cb(tls, NoPassphrase);
  if (SSL_CTX_use_certificate_chain_file(tls, cert_file.c_str()) != 1) {
    throw InvalidInput(cert_file, fmt::format("cannot be used: {}; expected a PEM file with the "
                                              "server's certificate first (--tls-cert)",
                                              Reason()));
  }
  if (SSL_CTX_use_PrivateKey_file(tls, key_file.c_str(), SSL_FILETYPE_PEM) != 1) {
    const bool is_mismatch = ERR_GET_REASON(ERR_peek_last_error()) == X509_R_KEY_VALUES_MISMATCH ||
                             ERR_GET_REASON(ERR_peek_last_error()) == X509_R_KEY_TYPE_MISMATCH;
    throw InvalidInput(
        key_file, is_mismatch
                      ? fmt::format("is not the key of {}; expected the private key that the "
                                    "certificate was made for (--tls-key)",
                                    cert_file)
                      : fmt::format("cannot be used: {}; expected a private key in a PEM file, "
                                    "without a passphrase (--tls-key)",
                                    Reason()));
  }
  if (SSL_CTX_check_private_key(tls) != 1) {
    throw InvalidInput(key_file, fmt::format("is not the key of {} (--tls-key)", cert_file));
  }
  return context;
}

}  // namespace pmkvq::server
