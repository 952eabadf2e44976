// Replies that go on: answers as they grow, the cache as it changes.
#include <fmt/format.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/http.hpp>

#include <sstream>

#include "pmkvq/server/http/connection.h"

namespace pmkvq::server {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;

constexpr auto kTuple = asio::as_tuple(asio::use_awaitable);
constexpr double kCacheSeconds = 0.25;

}  // namespace

asio::awaitable<SocketStream::ErrorCode> Connection::BeginStream() {
  shared_->service->metrics().CountRequest(Service::EndpointOf(head_.path), 200);
  http::response<http::empty_body> response;
  response.version(11);
  response.result(200);
  response.set(http::field::content_type, "text/event-stream; charset=utf-8");
  response.set(http::field::cache_control, "no-cache");
  response.set("X-Accel-Buffering", "no");
  response.set("X-Request-Id", head_.request_id);
  response.set("X-Content-Type-Options", "nosniff");
  if (!shared_->options.cors_origin.empty()) {
    response.set(http::field::access_control_allow_origin, shared_->options.cors_origin);
  }
  is_chunked_ = !is_http_1_0_;
  response.chunked(is_chunked_);
  if (!is_chunked_) keeps_alive_ = false;
  response.keep_alive(keeps_alive_ && !shared_->is_draining);
  if (shared_->is_draining) keeps_alive_ = false;
  std::ostringstream head;
  head << response.base();
  co_return co_await stream_.Write(head.str(), shared_->options.write_seconds);
}

asio::awaitable<SocketStream::ErrorCode> Connection::WriteStream(const std::string& text,
                                                                 bool is_end) {
  if (!is_chunked_) co_return co_await stream_.Write(text, shared_->options.write_seconds);
  const std::string chunk =
      fmt::format("{:x}\r\n{}\r\n{}", text.size(), text, is_end ? "0\r\n\r\n" : "");
  co_return co_await stream_.Write(chunk, shared_->options.write_seconds);
}

asio::awaitable<int> Connection::StreamAnswer(const std::shared_ptr<LiveRequest>& live) {
  Service& service = *shared_->service;
  // A request that is refused before its first token is answered with a status.
  while (!live->ended() && !live->is_cancelled && live->usage.completion_tokens == 0) {
    if (!co_await WaitFor(live, SilenceSeconds(*live))) break;
  }
  if (live->is_cancelled) co_return 499;
  if (live->error && live->usage.completion_tokens == 0) {
    HttpReply reply = service.WholeAnswer(*live);
    const int status = reply.status;
    co_await Write(std::move(reply));
    co_return status;
  }
  SocketStream::ErrorCode error = co_await BeginStream();
  while (!error) {
    const bool ended = live->ended();
    std::string text = service.StreamText(*live);
    if (text.empty() && !ended) {
      if (live->is_cancelled) co_return 499;
      const bool has_news = co_await WaitFor(live, SilenceSeconds(*live));
      service.CheckTime(*live);
      if (has_news || live->is_timed_out) continue;
      text = ": keep-alive\n\n";
    }
    error = co_await WriteStream(text, ended);
    if (!error && ended) co_return 200;
  }
  if (error == asio::error::timed_out) ++service.metrics().slow_readers;
  live->is_cancelled = true;
  co_return 499;
}

// Four times a second at most, and only where something has changed. A client that has gone is
// noticed at the next write.
asio::awaitable<void> Connection::StreamCache() {
  SocketStream::ErrorCode error = co_await BeginStream();
  if (is_head_) {
    keeps_alive_ = false;
    co_return;
  }
  std::string last;
  double silence = 0;
  while (!error && !shared_->is_draining) {
    std::string text = shared_->service->KvText();
    if (text != last) {
      last = text;
      error = co_await WriteStream("data: " + text + "\n\n", false);
      silence = 0;
    } else if (silence > shared_->options.keep_alive_seconds) {
      error = co_await WriteStream(": keep-alive\n\n", false);
      silence = 0;
    }
    wake_.expires_after(Nanoseconds(kCacheSeconds));
    co_await wake_.async_wait(kTuple);
    silence += kCacheSeconds;
  }
  if (!error) co_await WriteStream("data: [DONE]\n\n", true);
  keeps_alive_ = false;
}

}  // namespace pmkvq::server
