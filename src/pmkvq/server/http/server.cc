#include "pmkvq/server/http/server.h"

#include <fmt/format.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/use_awaitable.hpp>

#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <sys/stat.h>
#include <unistd.h>

#include <list>

#include "pmkvq/base/error.h"
#include "pmkvq/server/http/connection.h"

namespace pmkvq::server {
namespace {

namespace asio = boost::asio;
constexpr auto kTuple = asio::as_tuple(asio::use_awaitable);
// After a failed accept, for want of descriptors say.
constexpr double kAcceptRetrySeconds = 0.1;
constexpr double kDrainCheckSeconds = 0.02;
constexpr double kTrimSeconds = 60;
// For the last replies to be written, once no request runs any more.
constexpr double kLastBytesSeconds = 2;

}  // namespace

struct HttpServer::Impl {
  Impl(const ServerOptions& options, Service* service)
      : shared(options, service),
        acceptor(shared.io),
        unix_acceptor(shared.io),
        signals(shared.io),
        timer(shared.io) {}

  void ListenOnPort();
  void ListenOnUnixSocket();
  std::string BoundAddress() const;
  void Close();
  template <class Acceptor>
  asio::awaitable<void> Accept(Acceptor& from);
  asio::awaitable<void> Signals();
  asio::awaitable<void> Drain();
  asio::awaitable<void> TrimHeap();

  ConnectionShared shared;
  asio::ip::tcp::acceptor acceptor;
  asio::local::stream_protocol::acceptor unix_acceptor;
  asio::signal_set signals;
  asio::steady_timer timer;
  std::string bound_address;
  bool has_signal = false;  // To shut down.
  ServerEnd end = ServerEnd::kStopped;
  std::function<void()> on_hangup;
  std::list<std::weak_ptr<Connection>> connections;
};

HttpServer::HttpServer(const ServerOptions& options, Service* service)
    : impl_(std::make_unique<Impl>(options, service)) {
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) impl_->signals.add(signal);
  ReloadTls();
  options.unix_socket.empty() ? impl_->ListenOnPort() : impl_->ListenOnUnixSocket();
  // Kept: a server that drains has no open acceptor to ask.
  impl_->bound_address = impl_->BoundAddress();
}

void HttpServer::Impl::ListenOnUnixSocket() {
  const std::string& path = shared.options.unix_socket;
  boost::system::error_code error;
  asio::local::stream_protocol::endpoint endpoint;
  if (path.size() >= 108) {  // sun_path
    throw InvalidInput("--unix-socket",
                       fmt::format("found a path of {} bytes, expected at most 107", path.size()));
  }
  endpoint.path(path);
  // A socket that nobody listens on was left behind by a server that was killed.
  struct stat info {};
  if (lstat(path.c_str(), &info) == 0 && S_ISSOCK(info.st_mode)) {
    asio::local::stream_protocol::socket probe(shared.io);
    probe.connect(endpoint, error);
    if (error == asio::error::connection_refused) unlink(path.c_str());
  }
  error.clear();
  unix_acceptor.open(endpoint.protocol(), error);
  if (!error) {
    const mode_t before = umask(0117);
    unix_acceptor.bind(endpoint, error);
    umask(before);
  }
  if (!error) unix_acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (error) {
    throw IoError(path, fmt::format("cannot be listened on: {}; expected a path that does not "
                                    "exist, in a folder that can be written",
                                    error.message()));
  }
}

void HttpServer::Impl::Close() {
  boost::system::error_code ignored;
  acceptor.close(ignored);
  if (!unix_acceptor.is_open()) return;
  unix_acceptor.close(ignored);
  unlink(shared.options.unix_socket.c_str());
}

void HttpServer::Impl::ListenOnPort() {
  const ServerOptions& options = shared.options;
  boost::system::error_code error;
  const auto address = asio::ip::make_address(options.host, error);
  if (error) {
    throw InvalidInput("--host", fmt::format("found \"{}\", expected an IP address", options.host));
  }
  const asio::ip::tcp::endpoint endpoint(address, static_cast<uint16_t>(options.port));
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(asio::socket_base::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (error) {
    throw IoError(
        fmt::format("{}:{}", options.host, options.port),
        fmt::format("cannot be listened on: {}; --port 0 takes a free port", error.message()));
  }
}

HttpServer::~HttpServer() {
  impl_->Close();
  // Coroutines that still wait end with the context, before what they use.
  impl_->shared.preparation.join();
}

std::string HttpServer::address() const { return impl_->bound_address; }

std::string HttpServer::Impl::BoundAddress() const {
  const ServerOptions& options = shared.options;
  if (!options.unix_socket.empty()) return "unix:" + options.unix_socket;
  const bool is_v6 = options.host.find(':') != std::string::npos;
  return fmt::format("http{}://{}{}{}:{}", options.tls_cert.empty() ? "" : "s", is_v6 ? "[" : "",
                     options.host, is_v6 ? "]" : "", acceptor.local_endpoint().port());
}

void HttpServer::ReloadTls() {
  const ServerOptions& options = impl_->shared.options;
  if (!options.tls_cert.empty()) {
    impl_->shared.tls = LoadTls(options.tls_cert, options.tls_key);
  }
}

void HttpServer::Post(std::function<void()> work) { asio::post(impl_->shared.io, std::move(work)); }

void HttpServer::Stop() { impl_->shared.io.stop(); }

template <class Acceptor>
asio::awaitable<void> HttpServer::Impl::Accept(Acceptor& from) {
  constexpr bool kIsTcp = std::is_same_v<Acceptor, asio::ip::tcp::acceptor>;
  while (from.is_open()) {
    auto [error, socket] = co_await from.async_accept(kTuple);
    if (error == asio::error::operation_aborted) co_return;
    if (error) {
      timer.expires_after(Nanoseconds(kAcceptRetrySeconds));
      co_await timer.async_wait(kTuple);
      continue;
    }
    std::erase_if(connections, [](const auto& weak) { return weak.expired(); });
    std::string address = "unix";
    if constexpr (kIsTcp) {
      boost::system::error_code ignored;
      const auto remote = socket.remote_endpoint(ignored);
      address = ignored ? "unknown" : remote.address().to_string();
      socket.set_option(asio::ip::tcp::no_delay(true), ignored);
    }
    auto connection =
        std::make_shared<Connection>(&shared, StreamSocket(std::move(socket)), std::move(address));
    connections.push_back(connection);
    asio::co_spawn(
        shared.io, [connection] { return connection->Run(); }, asio::detached);
  }
}

asio::awaitable<void> HttpServer::Impl::Signals() {
  while (true) {
    const auto [error, signal] = co_await signals.async_wait(kTuple);
    if (error) co_return;
    if (signal == SIGHUP) {
      if (on_hangup) on_hangup();
    } else if (has_signal) {
      Close();
      end = ServerEnd::kAtOnce;
      shared.io.stop();
    } else {
      has_signal = true;
      asio::co_spawn(shared.io, Drain(), asio::detached);
    }
  }
}

asio::awaitable<void> HttpServer::Impl::Drain() {
  shared.service->log().Write("info", "draining");
  asio::steady_timer wait(shared.io);
  // /health says 503 at once; a balancer needs a while to see it.
  shared.service->BeginDrain(shared.options.drain_seconds > 0);
  wait.expires_after(Nanoseconds(shared.options.drain_seconds));
  co_await wait.async_wait(kTuple);
  shared.is_draining = true;
  shared.service->BeginDrain(false);
  Close();
  for (const auto& weak : connections) {
    if (const auto connection = weak.lock()) connection->CloseIfIdle();
  }
  const auto pause = [&] {
    wait.expires_after(Nanoseconds(kDrainCheckSeconds));
    return wait.async_wait(kTuple);
  };
  double waited = 0;
  while (shared.service->num_live() > 0 && waited < shared.options.shutdown_seconds) {
    co_await pause();
    waited += kDrainCheckSeconds;
  }
  ApiError error;
  error.status = 503;
  error.type = "server_error";
  error.code = "draining";
  error.message = "the server is shutting down";
  shared.service->FailAll(error);
  for (waited = 0; shared.num_connections > 0 && waited < kLastBytesSeconds;
       waited += kDrainCheckSeconds) {
    co_await pause();
  }
  end = ServerEnd::kDrained;
  shared.io.stop();
}

// glibc keeps freed pages between those in use, so that resident memory grew for as long as
// requests of new sizes came: in 15 minutes by 6 MiB, of which 0.3 were in use.
asio::awaitable<void> HttpServer::Impl::TrimHeap() {
#ifdef __GLIBC__
  asio::steady_timer wait(shared.io);
  while (true) {
    wait.expires_after(Nanoseconds(kTrimSeconds));
    co_await wait.async_wait(kTuple);
    asio::post(shared.preparation, [] { malloc_trim(0); });
  }
#else
  co_return;
#endif
}

ServerEnd HttpServer::Run(std::function<void()> on_hangup) {
  impl_->on_hangup = std::move(on_hangup);
  if (impl_->acceptor.is_open()) {
    asio::co_spawn(impl_->shared.io, impl_->Accept(impl_->acceptor), asio::detached);
  } else {
    asio::co_spawn(impl_->shared.io, impl_->Accept(impl_->unix_acceptor), asio::detached);
  }
  asio::co_spawn(impl_->shared.io, impl_->Signals(), asio::detached);
  asio::co_spawn(impl_->shared.io, impl_->TrimHeap(), asio::detached);
  impl_->shared.io.run();
  return impl_->end;
}

}  // namespace pmkvq::server
