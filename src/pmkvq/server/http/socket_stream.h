// The bytes of a connection, with TLS or without. Private to this folder: includes Boost.
//
// OpenSSL works on the socket itself, and not through asio::ssl::stream, which keeps two buffers of
// 17 KiB for every connection, also an idle one.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/system/error_code.hpp>

#include <chrono>
#include <functional>
#include <memory>
#include <string_view>

#include "pmkvq/server/http/tls.h"

struct ssl_st;  // OpenSSL's SSL.

namespace pmkvq::server {

// TCP and UNIX sockets.
using StreamSocket = boost::asio::generic::stream_protocol::socket;

// I/O thread only. At most one read and one write at a time; both may be under way together.
class SocketStream {
 public:
  template <class T>
  using Awaitable = boost::asio::awaitable<T>;
  using ErrorCode = boost::system::error_code;
  struct ReadResult {
    ErrorCode error;  // eof: the client sends nothing more. timed_out.
    size_t count = 0;
  };
  enum class Greeting { kDone, kIsPlainHttp, kFailed };

  // `tls` null: without TLS.
  SocketStream(StreamSocket socket, const TlsContext& tls);
  ~SocketStream();
  SocketStream(const SocketStream&) = delete;
  SocketStream& operator=(const SocketStream&) = delete;

  // The handshake of TLS, kDone at once without TLS. After kIsPlainHttp the stream goes on without
  // TLS, so that a client who came with http:// can be told.
  Awaitable<Greeting> Greet(double seconds);
  // One byte or more. After timed_out the stream can still be used.
  Awaitable<ReadResult> ReadSome(boost::asio::mutable_buffer space, double seconds);
  // All of it. timed_out: the client has taken nothing for `seconds`.
  Awaitable<ErrorCode> Write(std::string_view bytes, double seconds);
  // Calls `on_end` once when the client closes its side. Sees nothing behind bytes that the client
  // has sent and nobody has read. The stream must live as long as `owner` does.
  void WatchForEnd(std::shared_ptr<void> owner, std::function<void()> on_end);
  // Nothing more will be written.
  void EndWrites();
  // What waits ends with an error.
  void Close();

 private:
  using Time = std::chrono::steady_clock::time_point;
  enum class Peeked { kNothing, kBytes, kEnd };

  Awaitable<ErrorCode> Wait(boost::asio::socket_base::wait_type type, Time deadline);
  // After a TLS function returned `result` <= 0: waits until it can be called again.
  Awaitable<ErrorCode> WaitForTls(int result, Time deadline);
  Peeked Peek();

  StreamSocket socket_;
  std::unique_ptr<ssl_st, void (*)(ssl_st*)> tls_;
};

}  // namespace pmkvq::server
