// The HTTP/1.1 server: sockets, limits, timers, streams. Boost.Beast is in its .cc files only.
//
// Threads: everything runs on the I/O thread, but for bodies, which preparation threads read.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "pmkvq/server/http/service.h"

namespace pmkvq::server {

struct ServerOptions {
  std::string host = "127.0.0.1";
  int port = 8080;          // 0: a free one.
  std::string unix_socket;  // The path of a UNIX socket in place of host and port; "": none.
  std::string tls_cert;     // Files for TLS (tls.h); "": http.
  std::string tls_key;
  uint64_t max_body_bytes = uint64_t{4} << 20;
  int64_t max_connections = 4096;
  int64_t max_per_address = 256;
  double keep_alive_seconds = 15;  // Of silence in a stream, before a comment is sent.
  double idle_seconds = 75;        // Between requests of a connection.
  double header_seconds = 10;      // From a header's first byte to its last; a TLS handshake.
  double body_seconds = 30;        // Likewise; and 1 KiB/s at least after 5 s.
  double write_seconds = 60;       // For a client to take what was written.
  double drain_seconds = 0;        // From SIGTERM on new requests are still served so long.
  double shutdown_seconds = 30;    // For running requests after that.
  std::string cors_origin;         // "": none.
};

// Why HttpServer::Run returned.
enum class ServerEnd : uint8_t {
  kDrained,  // SIGTERM or SIGINT; running requests have ended, or their time was up.
  kAtOnce,   // A second such signal. Nothing was waited for; the caller ends the process.
  kStopped,  // Stop.
};

class HttpServer {
 public:
  // Binds the port or makes the UNIX socket, for its user and group. Throws IoError (address in
  // use, no such address), and what LoadTls throws. From here on SIGTERM, SIGINT and SIGHUP are the
  // server's: those that come before Run wait for it.
  HttpServer(const ServerOptions& options, Service* service);
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  // Where it listens: "http://127.0.0.1:8080", "unix:/run/pmkvq.sock".
  std::string address() const;

  // Serves until the server has shut down: after SIGTERM or SIGINT, which let running requests end,
  // a second such signal, or Stop. A UNIX socket is removed by then, unless it was Stop.
  // `on_hangup`: at SIGHUP, on the I/O thread.
  ServerEnd Run(std::function<void()> on_hangup);
  // Reads the files for TLS again, for connections to come. Throws what LoadTls throws, and the
  // former certificate stays. I/O thread only.
  void ReloadTls();
  // Runs `work` on the I/O thread. From any thread.
  void Post(std::function<void()> work);
  // Ends Run at once. From any thread.
  void Stop();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pmkvq::server
