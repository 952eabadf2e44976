#include "pmkvq/server/http/client.h"

#include <fmt/format.h>
#include <netdb.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>

#include <cerrno>
#include <cstring>
#include <memory>

#include "pmkvq/base/error.h"

namespace pmkvq::server {
namespace {

namespace beast = boost::beast;
namespace http = boost::beast::http;

constexpr int kPollMs = 100;
constexpr size_t kReadBytes = 16 << 10;

class Socket {
 public:
  Socket(const HttpUrl& url, const std::function<bool()>& should_stop);
  ~Socket();
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;

  void Write(std::string_view data);
  // -1: should stop. 0: the other side has closed.
  ssize_t Read(char* data, size_t size);

 private:
  [[noreturn]] void Fail(const std::string& what) const {
    throw IoError(url_.host + ":" + url_.port, what);
  }
  void Connect();
  void StartTls();
  // False: should stop.
  bool Wait(short events);

  const HttpUrl& url_;
  const std::function<bool()>& should_stop_;
  int descriptor_ = -1;
  std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context_{nullptr, SSL_CTX_free};
  std::unique_ptr<SSL, decltype(&SSL_free)> tls_{nullptr, SSL_free};
};

Socket::Socket(const HttpUrl& url, const std::function<bool()>& should_stop)
    : url_(url), should_stop_(should_stop) {
  Connect();
  if (!url.is_tls) return;
  try {
    StartTls();
  } catch (...) {
    tls_.reset();
    close(descriptor_);
    throw;
  }
}

Socket::~Socket() {
  tls_.reset();
  close(descriptor_);
}

void Socket::Connect() {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  const int failed = getaddrinfo(url_.host.c_str(), url_.port.c_str(), &hints, &list);
  if (failed != 0) {
    Fail(fmt::format("no address: {}; expected --url with the name of a server",
                     gai_strerror(failed)));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(list, freeaddrinfo);
  int error = 0;
  for (const addrinfo* one = list; one != nullptr; one = one->ai_next) {
    descriptor_ = socket(one->ai_family, one->ai_socktype | SOCK_CLOEXEC, one->ai_protocol);
    if (descriptor_ < 0) continue;
    if (connect(descriptor_, one->ai_addr, one->ai_addrlen) == 0) return;
    error = errno;
    close(descriptor_);
  }
  Fail(fmt::format("cannot be connected to: {}; expected --url of a server that runs",
                   std::strerror(error)));
}

void Socket::StartTls() {
  context_.reset(SSL_CTX_new(TLS_client_method()));
  if (context_ == nullptr) Fail("TLS cannot be set up");
  if (url_.ca_file.empty()) {
    SSL_CTX_set_default_verify_paths(context_.get());
  } else if (SSL_CTX_load_verify_file(context_.get(), url_.ca_file.c_str()) != 1) {
    throw InvalidInput(url_.ca_file, "cannot be used; expected a PEM file with certificates");
  }
  SSL_CTX_set_verify(context_.get(), SSL_VERIFY_PEER, nullptr);
  SSL_CTX_set_min_proto_version(context_.get(), TLS1_2_VERSION);
  tls_.reset(SSL_new(context_.get()));
  if (tls_ == nullptr) Fail("TLS cannot be set up");
  // An address is compared with the certificate's addresses, a name with its names; only names may
  // be sent before the handshake.
  X509_VERIFY_PARAM* const expected = SSL_get0_param(tls_.get());
  if (X509_VERIFY_PARAM_set1_ip_asc(expected, url_.host.c_str()) != 1) {
    if (SSL_set1_host(tls_.get(), url_.host.c_str()) != 1 ||
        SSL_set_tlsext_host_name(tls_.get(), url_.host.c_str()) != 1) {
      Fail("is no name that TLS can check");
    }
  }
  SSL_set_fd(tls_.get(), descriptor_);
  if (SSL_connect(tls_.get()) == 1) return;
  const long verified = SSL_get_verify_result(tls_.get());
  if (verified != X509_V_OK) {
    Fail(
        fmt::format("the certificate is not trusted: {}; expected one of the system's authorities, "
                    "or of --ca-cert",
                    X509_verify_cert_error_string(verified)));
  }
  Fail("does not speak TLS; expected --url http://...");
}

bool Socket::Wait(short events) {
  while (!should_stop_()) {
    pollfd one{descriptor_, events, 0};
    const int count = poll(&one, 1, kPollMs);
    if (count > 0) return true;
    if (count < 0 && errno != EINTR) Fail(std::strerror(errno));
  }
  return false;
}

void Socket::Write(std::string_view data) {
  while (!data.empty()) {
    if (!Wait(POLLOUT)) return;
    const ssize_t count = tls_ != nullptr
                              ? SSL_write(tls_.get(), data.data(), static_cast<int>(data.size()))
                              : send(descriptor_, data.data(), data.size(), MSG_NOSIGNAL);
    if (count <= 0 && errno == EINTR) continue;
    if (count <= 0) Fail("the connection was closed while the request was sent");
    data.remove_prefix(static_cast<size_t>(count));
  }
}

ssize_t Socket::Read(char* data, size_t size) {
  while (true) {
    const bool has_bytes = tls_ != nullptr && SSL_pending(tls_.get()) > 0;
    if (!has_bytes && !Wait(POLLIN)) return -1;
    const ssize_t count = tls_ != nullptr ? SSL_read(tls_.get(), data, static_cast<int>(size))
                                          : recv(descriptor_, data, size, 0);
    if (count >= 0) return count;
    if (errno == EINTR || errno == EAGAIN) continue;
    return 0;
  }
}

}  // namespace

HttpUrl HttpUrl::Parse(const std::string& text) {
  const auto fail = [&] {
    throw InvalidInput("--url", fmt::format("found \"{}\", expected http://HOST:PORT/v1 or "
                                            "https://HOST/v1",
                                            text));
  };
  HttpUrl url;
  std::string_view rest = text;
  if (rest.starts_with("https://")) {
    url.is_tls = true;
    rest.remove_prefix(8);
  } else if (rest.starts_with("http://")) {
    rest.remove_prefix(7);
  } else {
    fail();
  }
  const size_t slash = std::min(rest.find('/'), rest.size());
  std::string_view authority = rest.substr(0, slash);
  url.path = rest.substr(slash);
  while (url.path.ends_with('/')) url.path.pop_back();
  const bool is_bracketed = authority.starts_with('[');
  const size_t end =
      is_bracketed ? authority.find(']') : std::min(authority.rfind(':'), authority.size());
  if (authority.find_first_of("@ ") != std::string_view::npos || end == std::string_view::npos) {
    fail();
  }
  url.host = is_bracketed ? authority.substr(1, end - 1) : authority.substr(0, end);
  std::string_view port = authority.substr(is_bracketed ? end + 1 : end);
  if (port.starts_with(':')) port.remove_prefix(1);
  url.port = !port.empty() ? port : url.is_tls ? "443" : "80";
  if (url.host.empty() || url.port.find_first_not_of("0123456789") != std::string::npos ||
      url.port.size() > 5 || url.path.find_first_of(" \r\n?#") != std::string::npos) {
    fail();
  }
  return url;
}

int Fetch(const HttpUrl& url, const ClientRequest& request,
          const std::function<void(std::string_view)>& on_body,
          const std::function<bool()>& should_stop) {
  const bool is_v6 = url.host.find(':') != std::string::npos;
  std::string text =
      fmt::format("{} {}{} HTTP/1.1\r\nHost: {}{}{}:{}\r\nConnection: close\r\n", request.method,
                  url.path, request.path, is_v6 ? "[" : "", url.host, is_v6 ? "]" : "", url.port);
  for (const auto& [name, value] : request.headers) text += name + ": " + value + "\r\n";
  if (!request.body.empty()) {
    text += fmt::format("Content-Type: application/json\r\nContent-Length: {}\r\n",
                        request.body.size());
  }
  Socket socket(url, should_stop);
  socket.Write(text + "\r\n" + request.body);

  http::response_parser<http::string_body> parser;
  parser.eager(true);
  parser.body_limit(boost::none);
  beast::flat_buffer buffer;
  const auto fail = [&](const std::string& what) {
    throw IoError(url.host + ":" + url.port, what);
  };
  while (!parser.is_done()) {
    const auto space = buffer.prepare(kReadBytes);
    const ssize_t count = socket.Read(static_cast<char*>(space.data()), space.size());
    if (count < 0) return 0;
    buffer.commit(static_cast<size_t>(count));
    beast::error_code error;
    if (count == 0) {
      parser.put_eof(error);
      if (error || !parser.is_done()) fail("the reply ends early");
      break;
    }
    while (buffer.size() > 0 && !parser.is_done()) {
      const size_t used = parser.put(buffer.data(), error);
      buffer.consume(used);
      if (error == http::error::need_more || used == 0) break;
      if (error) fail(fmt::format("the reply is no HTTP: {}", error.message()));
    }
    std::string& body = parser.get().body();
    if (!body.empty()) on_body(body);
    body.clear();
  }
  return static_cast<int>(parser.get().result_int());
}

}  // namespace pmkvq::server
