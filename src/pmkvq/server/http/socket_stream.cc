#include "pmkvq/server/http/socket_stream.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/socket.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

#include <algorithm>
#include <cerrno>
#include <utility>
#include <variant>

namespace pmkvq::server {
namespace {

namespace asio = boost::asio;
constexpr auto kTuple = asio::as_tuple(asio::use_awaitable);
// What one call of OpenSSL may take: its sizes are ints.
constexpr size_t kMostPerCall = size_t{1} << 30;

std::chrono::steady_clock::time_point After(double seconds) {
  return std::chrono::steady_clock::now() + std::chrono::duration_cast<std::chrono::nanoseconds>(
                                                std::chrono::duration<double>(seconds));
}

bool IsLater() { return errno == EAGAIN || errno == EWOULDBLOCK; }

boost::system::error_code LastError() { return {errno, boost::system::system_category()}; }

}  // namespace

SocketStream::SocketStream(StreamSocket socket, const TlsContext& tls)
    : socket_(std::move(socket)), tls_(nullptr, SSL_free) {
  ErrorCode ignored;  // The first read says what is wrong.
  socket_.native_non_blocking(true, ignored);
  if (tls == nullptr) return;
  tls_.reset(SSL_new(tls.get()));
  if (tls_ == nullptr || SSL_set_fd(tls_.get(), socket_.native_handle()) != 1) {
    socket_.close(ignored);
  }
}

SocketStream::~SocketStream() = default;

asio::awaitable<SocketStream::ErrorCode> SocketStream::Wait(asio::socket_base::wait_type type,
                                                            Time deadline) {
  using namespace asio::experimental::awaitable_operators;
  asio::steady_timer timer(socket_.get_executor(), deadline);
  const auto result = co_await (socket_.async_wait(type, kTuple) || timer.async_wait(kTuple));
  if (result.index() == 1) co_return asio::error::timed_out;
  co_return std::get<0>(std::get<0>(result));
}

asio::awaitable<SocketStream::ErrorCode> SocketStream::WaitForTls(int result, Time deadline) {
  switch (SSL_get_error(tls_.get(), result)) {
    case SSL_ERROR_WANT_READ:
      co_return co_await Wait(asio::socket_base::wait_read, deadline);
    case SSL_ERROR_WANT_WRITE:
      co_return co_await Wait(asio::socket_base::wait_write, deadline);
    case SSL_ERROR_ZERO_RETURN:
      co_return asio::error::eof;
    default:
      co_return asio::error::connection_reset;
  }
}

asio::awaitable<SocketStream::Greeting> SocketStream::Greet(double seconds) {
  if (tls_ == nullptr) co_return socket_.is_open() ? Greeting::kDone : Greeting::kFailed;
  const Time deadline = After(seconds);
  while (socket_.is_open()) {
    ERR_clear_error();
    const int result = SSL_accept(tls_.get());
    if (result == 1) co_return Greeting::kDone;
    if (ERR_GET_REASON(ERR_peek_error()) == SSL_R_HTTP_REQUEST) {
      tls_.reset();
      co_return Greeting::kIsPlainHttp;
    }
    if (co_await WaitForTls(result, deadline)) break;
  }
  co_return Greeting::kFailed;
}

asio::awaitable<SocketStream::ReadResult> SocketStream::ReadSome(asio::mutable_buffer space,
                                                                 double seconds) {
  const Time deadline = After(seconds);
  while (socket_.is_open()) {
    ErrorCode error;
    if (tls_ != nullptr) {
      ERR_clear_error();
      const int count = SSL_read(tls_.get(), space.data(),
                                 static_cast<int>(std::min(space.size(), kMostPerCall)));
      if (count > 0) co_return ReadResult{{}, static_cast<size_t>(count)};
      error = co_await WaitForTls(count, deadline);
    } else {
      const ssize_t count = recv(socket_.native_handle(), space.data(), space.size(), 0);
      if (count > 0) co_return ReadResult{{}, static_cast<size_t>(count)};
      if (count == 0) co_return ReadResult{asio::error::eof, 0};
      if (errno == EINTR) continue;
      if (!IsLater()) co_return ReadResult{LastError(), 0};
      error = co_await Wait(asio::socket_base::wait_read, deadline);
    }
    if (error) co_return ReadResult{error, 0};
  }
  co_return ReadResult{asio::error::operation_aborted, 0};
}

asio::awaitable<SocketStream::ErrorCode> SocketStream::Write(std::string_view bytes,
                                                             double seconds) {
  Time deadline = After(seconds);
  while (!bytes.empty()) {
    if (!socket_.is_open()) co_return asio::error::operation_aborted;
    ErrorCode error;
    size_t written = 0;
    if (tls_ != nullptr) {
      ERR_clear_error();
      const int count = SSL_write(tls_.get(), bytes.data(),
                                  static_cast<int>(std::min(bytes.size(), kMostPerCall)));
      if (count > 0) {
        written = static_cast<size_t>(count);
      } else {
        error = co_await WaitForTls(count, deadline);
      }
    } else {
      const ssize_t count = send(socket_.native_handle(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (count >= 0) {
        written = static_cast<size_t>(count);
      } else if (IsLater()) {
        error = co_await Wait(asio::socket_base::wait_write, deadline);
      } else if (errno != EINTR) {
        error = LastError();
      }
    }
    if (error) co_return error;
    if (written > 0) deadline = After(seconds);
    bytes.remove_prefix(written);
  }
  co_return ErrorCode{};
}

SocketStream::Peeked SocketStream::Peek() {
  char byte = 0;
  if (tls_ != nullptr) {
    ERR_clear_error();
    const int count = SSL_peek(tls_.get(), &byte, 1);
    if (count > 0) return Peeked::kBytes;
    const int error = SSL_get_error(tls_.get(), count);
    return error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? Peeked::kNothing
                                                                         : Peeked::kEnd;
  }
  const ssize_t count = recv(socket_.native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  if (count > 0) return Peeked::kBytes;
  return count < 0 && (IsLater() || errno == EINTR) ? Peeked::kNothing : Peeked::kEnd;
}

void SocketStream::WatchForEnd(std::shared_ptr<void> owner, std::function<void()> on_end) {
  socket_.async_wait(
      asio::socket_base::wait_read,
      [this, owner = std::move(owner), on_end = std::move(on_end)](const ErrorCode& error) mutable {
        if (error || !socket_.is_open()) return;
        switch (Peek()) {
          case Peeked::kNothing:  // A part of a record.
            return WatchForEnd(std::move(owner), std::move(on_end));
          case Peeked::kBytes:  // The next request, which waits for its turn.
            return;
          case Peeked::kEnd:
            return on_end();
        }
      });
}

void SocketStream::EndWrites() {
  if (!socket_.is_open()) return;
  if (tls_ != nullptr && SSL_is_init_finished(tls_.get()) == 1) {
    ERR_clear_error();
    SSL_shutdown(tls_.get());  // Says that the reply is whole. Lost where the socket is full.
  }
  ErrorCode ignored;
  socket_.shutdown(asio::socket_base::shutdown_send, ignored);
}

void SocketStream::Close() {
  ErrorCode ignored;
  socket_.close(ignored);
}

}  // namespace pmkvq::server
