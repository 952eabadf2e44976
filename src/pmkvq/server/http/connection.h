// A connection and what connections share. Private to this folder: includes Boost.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/message.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>

#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "pmkvq/server/http/server.h"
#include "pmkvq/server/http/socket_stream.h"
#include "pmkvq/server/http/tls.h"

namespace pmkvq::server {

using Seconds = std::chrono::duration<double>;
inline std::chrono::nanoseconds Nanoseconds(double seconds) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Seconds(seconds));
}

// Of all connections; I/O thread only.
struct ConnectionShared {
  explicit ConnectionShared(const ServerOptions& server_options, Service* the_service)
      : options(server_options), service(the_service) {}

  ServerOptions options;
  Service* service;
  TlsContext tls;  // Of connections to come; null: none.
  int64_t num_preparing = 0;
  int64_t num_connections = 0;
  std::map<std::string, int64_t> num_of_address;
  bool is_draining = false;
  // Last, so destroyed first: connections that are still open end with it, and use what is above.
  boost::asio::io_context io{1};
  boost::asio::thread_pool preparation{2};
};

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  // `address`: of the client, for limits and the log.
  Connection(ConnectionShared* shared, StreamSocket socket, std::string address);
  ~Connection();

  boost::asio::awaitable<void> Run();
  // Closes it where it waits for a request.
  void CloseIfIdle();
  // Says that there are too many connections, and ends.
  boost::asio::awaitable<void> TurnAway();

 private:
  using Message = boost::beast::http::request<boost::beast::http::string_body>;
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;
  using ErrorCode = SocketStream::ErrorCode;
  template <class T>
  using Awaitable = boost::asio::awaitable<T>;

  // The handshake of TLS; false: the connection ends.
  Awaitable<bool> Greet();
  // The next request into message_ and head_; false: the connection ends. Replies to bad ones.
  Awaitable<bool> ReadRequest();
  // Reads to the end of the header's text. A reply that refuses it, or status 0.
  Awaitable<HttpReply> ReadHeaderText(size_t* header_bytes);
  // The rest of a body whose first bytes are in buffer_. A reply that refuses it, status 0 where
  // the client has gone, or nothing: it is whole.
  Awaitable<std::optional<HttpReply>> ReadBody(Parser& parser);
  Awaitable<void> Linger();
  Awaitable<void> Handle();
  Awaitable<void> Complete(CompletionRequest request);
  // Of a stream of events: its header, and text; `is_end`: nothing follows.
  Awaitable<ErrorCode> BeginStream();
  Awaitable<ErrorCode> WriteStream(const std::string& text, bool is_end);
  Awaitable<void> StreamCache();
  Awaitable<int> StreamAnswer(const std::shared_ptr<LiveRequest>& live);
  Awaitable<void> Write(HttpReply reply);
  // Wakes `live` when the client closes its side.
  void Watch(const std::shared_ptr<LiveRequest>& live);
  double SilenceSeconds(const LiveRequest& live) const;
  Awaitable<bool> WaitFor(const std::shared_ptr<LiveRequest>& live, double seconds);
  RequestHead HeadOf(const Message& message) const;

  ConnectionShared* shared_;
  SocketStream stream_;
  boost::asio::steady_timer wake_;
  boost::beast::flat_buffer buffer_;
  std::string address_;
  Message message_;
  RequestHead head_;
  std::string client_;
  bool is_idle_ = true;
  bool keeps_alive_ = true;
  bool lingers_ = false;      // The last reply may come before the request's end.
  bool is_http_1_0_ = false;  // Knows no chunks.
  bool is_chunked_ = false;   // The stream is.
  bool is_head_ = false;      // HEAD: no body in replies.
};

}  // namespace pmkvq::server
