// A small HTTP client for `pmkvq chat --url`: one request at a time, the body as it arrives.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace pmkvq::server {

struct HttpUrl {
  bool is_tls = false;
  std::string host;
  std::string port;
  std::string path;     // Without a slash at its end; "" for none.
  std::string ca_file;  // PEM: whose certificates are trusted; "": those of the system.

  // "http://127.0.0.1:8080/v1", "https://example.org/v1". Throws InvalidInput naming --url.
  static HttpUrl Parse(const std::string& text);
};

struct ClientRequest {
  std::string method = "GET";
  std::string path;  // Behind that of the URL.
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;  // JSON; "": none.
};

// Opens a connection, sends a request, closes it after the reply. Calls `on_body` with each piece
// of the reply's body. Returns the status, or 0 where `should_stop`, asked ten times a second, said
// so.
//
// TLS: the certificate must be for the URL's host, a name or an IP address. Throws IoError naming
// host and port: no connection, a certificate that is not trusted, a reply that ends early or is no
// HTTP; InvalidInput naming ca_file.
int Fetch(const HttpUrl& url, const ClientRequest& request,
          const std::function<void(std::string_view)>& on_body,
          const std::function<bool()>& should_stop);

}  // namespace pmkvq::server
