#include "pmkvq/server/http/server.h"

#include <fmt/format.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/use_awaitable.hpp>

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
// For the last replies to be written, once no request runs any more.
constexpr double kLastBytesSeconds = 2;

}  // namespace

struct HttpServer::Impl {
  Impl(const ServerOptions& options, Service* service)
      : shared(options, service), acceptor(shared.io), signals(shared.io), timer(shared.io) {}

  asio::awaitable<void> Accept();
  asio::awaitable<void> Signals();
  asio::awaitable<void> Drain();

  ConnectionShared shared;
  asio::ip::tcp::acceptor acceptor;
  asio::signal_set signals;
  asio::steady_timer timer;
  std::function<void()> on_hangup;
  std::list<std::weak_ptr<Connection>> connections;
};

HttpServer::HttpServer(const ServerOptions& options, Service* service)
    : impl_(std::make_unique<Impl>(options, service)) {
  boost::system::error_code error;
  const auto address = asio::ip::make_address(options.host, error);
  if (error) {
    throw InvalidInput("--host", fmt::format("found \"{}\", expected an IP address", options.host));
  }
  const asio::ip::tcp::endpoint endpoint(address, static_cast<uint16_t>(options.port));
  impl_->acceptor.open(endpoint.protocol(), error);
  if (!error) impl_->acceptor.set_option(asio::socket_base::reuse_address(true), error);
  if (!error) impl_->acceptor.bind(endpoint, error);
  if (!error) impl_->acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (error) {
    throw IoError(
        fmt::format("{}:{}", options.host, options.port),
        fmt::format("cannot be listened on: {}; --port 0 takes a free port", error.message()));
  }
}

HttpServer::~HttpServer() {
  // Coroutines that still wait end with the context, before what they use.
  impl_->shared.preparation.join();
}

int HttpServer::port() const { return impl_->acceptor.local_endpoint().port(); }

void HttpServer::Post(std::function<void()> work) { asio::post(impl_->shared.io, std::move(work)); }

void HttpServer::Stop() { impl_->shared.io.stop(); }

asio::awaitable<void> HttpServer::Impl::Accept() {
  while (acceptor.is_open()) {
    auto [error, socket] = co_await acceptor.async_accept(kTuple);
    if (error == asio::error::operation_aborted) co_return;
    if (error) {
      timer.expires_after(Nanoseconds(kAcceptRetrySeconds));
      co_await timer.async_wait(kTuple);
      continue;
    }
    std::erase_if(connections, [](const auto& weak) { return weak.expired(); });
    auto connection = std::make_shared<Connection>(&shared, std::move(socket));
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
    } else if (shared.is_draining) {
      shared.io.stop();  // A second signal: at once.
    } else {
      asio::co_spawn(shared.io, Drain(), asio::detached);
    }
  }
}

asio::awaitable<void> HttpServer::Impl::Drain() {
  shared.is_draining = true;
  shared.service->BeginDrain();
  shared.service->log().Write("info", "draining");
  boost::system::error_code ignored;
  acceptor.close(ignored);
  for (const auto& weak : connections) {
    if (const auto connection = weak.lock()) connection->CloseIfIdle();
  }
  asio::steady_timer wait(shared.io);
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
  shared.io.stop();
}

void HttpServer::Run(std::function<void()> on_hangup) {
  impl_->on_hangup = std::move(on_hangup);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) impl_->signals.add(signal);
  asio::co_spawn(impl_->shared.io, impl_->Accept(), asio::detached);
  asio::co_spawn(impl_->shared.io, impl_->Signals(), asio::detached);
  impl_->shared.io.run();
}

}  // namespace pmkvq::server
