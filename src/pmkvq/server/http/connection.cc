#include "pmkvq/server/http/connection.h"

#include <fmt/format.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/http.hpp>

#include <algorithm>
#include <random>
#include <sstream>

namespace pmkvq::server {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;

constexpr auto kTuple = asio::as_tuple(asio::use_awaitable);

constexpr size_t kMostHeaderBytes = 16 << 10;
constexpr size_t kMostHeaderFields = 100;
constexpr size_t kMostTargetBytes = 8 << 10;
// What an idle connection keeps ready, and one that reads a body.
constexpr size_t kHeaderReadBytes = 1 << 10;
constexpr size_t kBodyReadBytes = 64 << 10;
// Of a body: at least so many bytes a second, after a time to begin.
constexpr double kLeastBodyRate = 1024;
constexpr double kBodyGraceSeconds = 5;
// Requests that are being read and tokenised at a time: 64, or as many as may run and wait.
constexpr int64_t kLeastPreparing = 64;
constexpr double kLingerSeconds = 1;
constexpr size_t kMostLingerBytes = size_t{16} << 20;
constexpr char kTlsHandshake = 0x16;  // The first byte of a client that speaks TLS.
// A wrong key is answered later, so that trying keys is slow.
constexpr double kWrongKeySeconds = 0.05;

std::string NewRequestId() {
  static std::random_device device;
  return fmt::format("req-{:08x}{:08x}", device(), device());
}

bool IsRequestId(std::string_view id) {
  return !id.empty() && id.size() <= 64 && std::all_of(id.begin(), id.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
           c == '-';
  });
}

HttpReply Bad(int status, const char* code, const std::string& message) {
  ApiError error;
  error.status = status;
  error.code = code;
  error.message = message;
  HttpReply reply = Service::ErrorReply(error);
  reply.closes = true;
  return reply;
}

HttpReply TooLarge(uint64_t most_bytes) {
  return Bad(413, "body_too_large",
             fmt::format("the body has more than {} bytes (--max-body)", most_bytes));
}

// What HTTP parsers read in different ways, and attacks on proxies live by: folded lines, NUL, a
// lone CR or LF.
const char* FaultOf(std::string_view header) {
  size_t fields = 0;
  for (size_t i = 0; i < header.size(); ++i) {
    const char c = header[i];
    if (c == '\0') return "a NUL byte";
    if (c == '\r' && (i + 1 == header.size() || header[i + 1] != '\n')) return "a lone CR";
    if (c != '\n') continue;
    if (i == 0 || header[i - 1] != '\r') return "a lone LF";
    ++fields;
    if (i + 1 < header.size() && (header[i + 1] == ' ' || header[i + 1] == '\t')) {
      return "a folded line";
    }
  }
  // The request line and the empty line at the end are no fields.
  return fields > kMostHeaderFields + 2 ? "more than 100 fields" : nullptr;
}

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return Seconds(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

Connection::Connection(ConnectionShared* shared, StreamSocket socket, std::string address)
    : shared_(shared),
      stream_(std::move(socket), shared->tls),
      wake_(shared->io),
      address_(std::move(address)),
      client_(address_) {
  ++shared_->num_connections;
  ++shared_->num_of_address[address_];
  shared_->service->metrics().connections = shared_->num_connections;
}

Connection::~Connection() {
  --shared_->num_connections;
  const auto found = shared_->num_of_address.find(address_);
  if (--found->second == 0) shared_->num_of_address.erase(found);
  shared_->service->metrics().connections = shared_->num_connections;
}

void Connection::CloseIfIdle() {
  if (is_idle_) stream_.Close();
}

asio::awaitable<void> Connection::TurnAway() {
  // Not worth a handshake.
  if (shared_->tls != nullptr) co_return stream_.Close();
  head_.request_id = NewRequestId();
  HttpReply reply = Bad(503, "too_many_connections", "too many connections are open");
  reply.headers.emplace_back("Retry-After", "5");
  co_await Write(std::move(reply));
  stream_.Close();
}

asio::awaitable<bool> Connection::Greet() {
  const SocketStream::Greeting greeting = co_await stream_.Greet(shared_->options.header_seconds);
  if (greeting == SocketStream::Greeting::kDone) co_return true;
  ++shared_->service->metrics().tls_failures;
  if (greeting == SocketStream::Greeting::kIsPlainHttp) {
    head_.request_id = NewRequestId();
    co_await Write(Bad(400, "tls_expected", "found http on a port with TLS, expected https://"));
  }
  co_return false;
}

asio::awaitable<void> Connection::Run() {
  const auto self = shared_from_this();
  if (shared_->num_connections > shared_->options.max_connections ||
      shared_->num_of_address[address_] > shared_->options.max_per_address) {
    co_return co_await TurnAway();
  }
  if (co_await Greet()) {
    while (keeps_alive_ && !shared_->is_draining) {
      if (!co_await ReadRequest()) break;
      co_await Handle();
      is_idle_ = true;
    }
  }
  stream_.EndWrites();
  if (lingers_) co_await Linger();
}

// A socket that is closed while bytes wait in it is reset, and the client may lose the last reply:
// what a client still sends is read and dropped for a while.
asio::awaitable<void> Connection::Linger() {
  const auto began = std::chrono::steady_clock::now();
  for (size_t total = 0; total < kMostLingerBytes;) {
    buffer_.clear();
    const double left = kLingerSeconds - SecondsSince(began);
    const auto [error, count] = co_await stream_.ReadSome(buffer_.prepare(16384), left);
    if (error) co_return;
    total += count;
  }
}

asio::awaitable<HttpReply> Connection::ReadHeaderText(size_t* header_bytes) {
  HttpReply none;
  none.status = 0;
  const auto text = [&] {
    const auto data = buffer_.data();
    return std::string_view(static_cast<const char*>(data.data()), data.size());
  };
  std::chrono::steady_clock::time_point began = std::chrono::steady_clock::now();
  bool has_begun = buffer_.size() > 0;
  while (true) {
    const size_t end = text().find("\r\n\r\n");
    if (end != std::string_view::npos && end + 4 <= kMostHeaderBytes) {
      *header_bytes = end + 4;
      if (const char* fault = FaultOf(text().substr(0, end + 4))) {
        co_return Bad(400, "invalid_request", fmt::format("the header has {}", fault));
      }
      co_return none;
    }
    if (buffer_.size() >= kMostHeaderBytes) {
      co_return Bad(431, "headers_too_large",
                    fmt::format("the header has more than {} bytes", kMostHeaderBytes));
    }
    const double left = has_begun ? shared_->options.header_seconds - SecondsSince(began)
                                  : shared_->options.idle_seconds;
    if (left <= 0) co_return Bad(408, "timeout", "the header took too long");
    const auto [error, count] = co_await stream_.ReadSome(buffer_.prepare(kHeaderReadBytes), left);
    if (error == asio::error::timed_out && has_begun) {
      co_return Bad(408, "timeout", "the header took too long");
    }
    if (error) co_return none;
    buffer_.commit(count);
    if (!has_begun && text().front() == kTlsHandshake) {
      co_return Bad(400, "invalid_request", "found TLS on a port without it, expected http://");
    }
    if (!has_begun) began = std::chrono::steady_clock::now();
    has_begun = true;
    is_idle_ = false;
  }
}

RequestHead Connection::HeadOf(const Message& message) const {
  const auto field = [&](auto name) { return std::string(message[name]); };
  RequestHead head;
  head.method = std::string(message.method_string());
  const std::string target(message.target());
  head.path = target.substr(0, target.find('?'));
  head.host = field(http::field::host);
  head.origin = field(http::field::origin);
  head.content_type = field(http::field::content_type);
  head.content_encoding = field(http::field::content_encoding);
  head.authorization = field(http::field::authorization);
  head.api_key = field("X-Api-Key");
  head.request_id = field("X-Request-Id");
  if (!IsRequestId(head.request_id)) head.request_id = NewRequestId();
  return head;
}

asio::awaitable<bool> Connection::ReadRequest() {
  head_ = {};
  head_.request_id = NewRequestId();
  client_ = address_;
  is_head_ = false;
  size_t header_bytes = 0;
  HttpReply refused = co_await ReadHeaderText(&header_bytes);
  if (refused.status != 0) {
    co_await Write(std::move(refused));
    co_return false;
  }
  if (header_bytes == 0) co_return false;  // Closed, or nothing came.
  is_idle_ = false;

  Parser parser;
  parser.header_limit(kMostHeaderBytes);
  parser.body_limit(shared_->options.max_body_bytes);
  beast::error_code error;
  buffer_.consume(parser.put(buffer_.data(), error));
  if (error == http::error::body_limit) {
    co_await Write(TooLarge(shared_->options.max_body_bytes));
    co_return false;
  }
  if (error || !parser.is_header_done()) {
    co_await Write(Bad(400, "invalid_request", "the header is not well-formed HTTP/1.1"));
    co_return false;
  }
  const auto& header = parser.get();
  head_ = HeadOf(header);
  keeps_alive_ = header.keep_alive();
  is_head_ = header.method() == http::verb::head;
  is_http_1_0_ = header.version() == 10;
  if (header.target().size() > kMostTargetBytes) {
    co_await Write(Bad(414, "invalid_request", "the path is too long"));
    co_return false;
  }
  if (header.version() == 11 && header.count(http::field::host) != 1) {
    co_await Write(Bad(400, "invalid_request", "expected one Host field"));
    co_return false;
  }
  // The body of a request that is refused is not read: the connection ends behind the reply.
  if (std::optional<HttpReply> reply = shared_->service->Refuse(head_, address_, &client_)) {
    if (reply->status == 401) {
      wake_.expires_after(Nanoseconds(kWrongKeySeconds));
      co_await wake_.async_wait(kTuple);
    }
    reply->closes = !parser.is_done();
    const bool goes_on = parser.is_done();
    co_await Write(std::move(*reply));
    co_return goes_on&& keeps_alive_&& co_await ReadRequest();
  }
  if (header[http::field::expect] == "100-continue" && !parser.is_done()) {
    static constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
    if (co_await stream_.Write(kContinue, shared_->options.write_seconds)) co_return false;
  }
  if (std::optional<HttpReply> reply = co_await ReadBody(parser)) {
    if (reply->status != 0) co_await Write(std::move(*reply));
    co_return false;
  }
  buffer_.shrink_to_fit();  // An answer may take hours.
  message_ = parser.release();
  co_return true;
}

asio::awaitable<std::optional<HttpReply>> Connection::ReadBody(Parser& parser) {
  parser.eager(true);
  const auto began = std::chrono::steady_clock::now();
  double received = 0;
  while (!parser.is_done()) {
    beast::error_code error;
    const size_t used = buffer_.size() > 0 ? parser.put(buffer_.data(), error) : 0;
    buffer_.consume(used);
    if (error == http::error::body_limit) co_return TooLarge(shared_->options.max_body_bytes);
    if (error && error != http::error::need_more) {
      co_return Bad(400, "invalid_request", "the body is not well-formed HTTP/1.1");
    }
    if (parser.is_done()) break;
    if (used > 0 && buffer_.size() > 0) continue;
    if (buffer_.size() >= kMostHeaderBytes) {
      co_return Bad(400, "invalid_request", "the body has a chunk whose header is too long");
    }
    const double seconds = SecondsSince(began);
    const bool is_slow = seconds > kBodyGraceSeconds && received < kLeastBodyRate * seconds;
    const double left = std::min(kBodyGraceSeconds, shared_->options.body_seconds - seconds);
    if (is_slow || left <= 0) co_return Bad(408, "timeout", "the body came too slowly");
    const auto [failed, count] = co_await stream_.ReadSome(buffer_.prepare(kBodyReadBytes), left);
    if (failed == asio::error::timed_out) {
      co_return Bad(408, "timeout", "the body came too slowly");
    }
    if (failed) {
      HttpReply none;
      none.status = 0;
      co_return none;
    }
    buffer_.commit(count);
    received += static_cast<double>(count);
  }
  co_return std::nullopt;
}

asio::awaitable<void> Connection::Write(HttpReply reply) {
  shared_->service->metrics().CountRequest(Service::EndpointOf(head_.path), reply.status);
  if (!reply.error_code.empty()) {
    shared_->service->LogRefused(head_, address_, client_, reply);
  }
  if (reply.closes || shared_->is_draining) keeps_alive_ = false;
  if (reply.closes) lingers_ = true;
  http::response<http::string_body> response;
  response.version(11);
  response.result(static_cast<unsigned>(reply.status));
  if (reply.status != 204) response.set(http::field::content_type, reply.content_type);
  response.set("X-Request-Id", head_.request_id);
  response.set("X-Content-Type-Options", "nosniff");
  if (!shared_->options.cors_origin.empty()) {
    response.set(http::field::access_control_allow_origin, shared_->options.cors_origin);
    response.set(http::field::vary, "Origin");
  }
  for (const auto& [name, value] : reply.headers) response.set(name, value);
  response.keep_alive(keeps_alive_);
  response.body() = std::move(reply.body);
  response.prepare_payload();
  std::ostringstream head;
  head << response.base();
  std::string text = std::move(head).str();
  if (!is_head_) text += response.body();
  if (co_await stream_.Write(text, shared_->options.write_seconds)) keeps_alive_ = false;
}

asio::awaitable<void> Connection::Handle() {
  Service& service = *shared_->service;
  if (std::optional<HttpReply> reply = service.ReplyAtOnce(head_)) {
    co_return co_await Write(std::move(*reply));
  }
  if (head_.path == "/v1/kv/stream") co_return co_await StreamCache();
  if (shared_->num_preparing >= std::max(kLeastPreparing, service.most_choices())) {
    ApiError error;
    error.status = 429;
    error.type = "rate_limit_error";
    error.code = "queue_full";
    error.message = "too many requests are being read";
    error.retry_after = 1;
    co_return co_await Write(Service::ErrorReply(error));
  }
  // To a preparation thread and back.
  ++shared_->num_preparing;
  const std::shared_ptr<const ApiContext> context = service.context();
  co_await asio::post(asio::bind_executor(shared_->preparation, asio::use_awaitable));
  Service::Prepared prepared = Service::Prepare(head_, message_.body(), *context);
  co_await asio::post(asio::bind_executor(shared_->io, asio::use_awaitable));
  --shared_->num_preparing;
  message_ = {};
  if (prepared.reply) co_return co_await Write(std::move(*prepared.reply));
  co_await Complete(std::move(*prepared.completion));
}

void Connection::Watch(const std::shared_ptr<LiveRequest>& live) {
  stream_.WatchForEnd(shared_from_this(), [weak = std::weak_ptr(live)] {
    const std::shared_ptr<LiveRequest> watched = weak.lock();
    if (watched == nullptr) return;
    watched->is_cancelled = true;
    if (watched->wake) watched->wake();
  });
}

// Until something changes; false when nothing has in this time.
asio::awaitable<bool> Connection::WaitFor(const std::shared_ptr<LiveRequest>& live,
                                          double seconds) {
  wake_.expires_after(Nanoseconds(seconds));
  live->wake = [this] { wake_.cancel(); };
  const auto [error] = co_await wake_.async_wait(kTuple);
  live->wake = nullptr;
  co_return static_cast<bool>(error);
}

double Connection::SilenceSeconds(const LiveRequest& live) const {
  return std::min(shared_->options.keep_alive_seconds, shared_->service->SecondsLeft(live));
}

asio::awaitable<void> Connection::Complete(CompletionRequest request) {
  Service& service = *shared_->service;
  HttpReply refused;
  const bool streams = request.fields.stream;
  const std::shared_ptr<LiveRequest> live =
      service.Start(std::move(request), head_, client_, &refused);
  if (live == nullptr) co_return co_await Write(std::move(refused));
  Watch(live);
  int status = 200;
  if (streams) {
    status = co_await StreamAnswer(live);
  } else {
    while (!live->ended() && !live->is_cancelled) {
      co_await WaitFor(live, service.SecondsLeft(*live));
      service.CheckTime(*live);
    }
    if (!live->is_cancelled) {
      HttpReply reply = service.WholeAnswer(*live);
      status = reply.status;
      co_await Write(std::move(reply));
    }
  }
  if (live->is_cancelled) {
    ++service.metrics().clients_gone;
    keeps_alive_ = false;
    status = 499;
  }
  service.End(live, status);
}

}  // namespace pmkvq::server
