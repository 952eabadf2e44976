// Which requests are let in: paths, methods, hosts, keys, media types.
#include <fmt/format.h>
#include <boost/asio/ip/address_v4.hpp>

#include <algorithm>

#include "pmkvq/server/http/service.h"

namespace pmkvq::server {
namespace {

struct Route {
  const char* method;
  const char* path;
  bool needs_key;
};
// All that there are; {} stands for one part of a path.
constexpr Route kRoutes[] = {
    {"POST", "/v1/chat/completions", true},
    {"POST", "/v1/completions", true},
    {"POST", "/v1/responses", true},
    {"GET", "/v1/models", true},
    {"GET", "/v1/models/{}", true},
    {"POST", "/tokenize", true},
    {"POST", "/detokenize", true},
    {"POST", "/apply-template", true},
    {"GET", "/tokenizer_info", true},
    {"GET", "/props", true},
    {"GET", "/slots", true},
    {"GET", "/metrics", true},
    {"GET", "/v1/kv", true},
    {"GET", "/v1/kv/stream", true},
    {"GET", "/", false},
    {"GET", "/health", false},
    {"GET", "/live", false},
    {"GET", "/version", false},
};

constexpr int64_t kMostWrongKeys = 20;  // Of an address, in a second.

bool Matches(std::string_view pattern, std::string_view path) {
  if (!pattern.ends_with("{}")) return pattern == path;
  const std::string_view front = pattern.substr(0, pattern.size() - 2);
  return path.starts_with(front) && path.size() > front.size();
}

const Route* FindRoute(const std::string& method, const std::string& path, bool* path_is_known,
                       std::string* allowed) {
  const Route* found = nullptr;
  for (const Route& route : kRoutes) {
    if (!Matches(route.path, path)) continue;
    *path_is_known = true;
    *allowed = route.method;
    if (method == route.method || (method == "HEAD" && std::string_view(route.method) == "GET")) {
      found = &route;
    }
  }
  return found;
}

// "example.org:80" and "[::1]:80" without the port.
std::string_view HostName(std::string_view host) {
  const size_t colon = host.rfind(':');
  if (colon == std::string_view::npos || host.ends_with("]")) return host;
  return host.substr(0, colon);
}

// A name that begins with "127." may be anybody's: addresses only.
bool IsLoopback(std::string_view name) {
  if (name == "localhost" || name == "[::1]") return true;
  boost::system::error_code error;
  const auto address = boost::asio::ip::make_address_v4(name, error);
  return !error && address.is_loopback();
}

}  // namespace

std::string Service::EndpointOf(const std::string& path) {
  for (const Route& route : kRoutes) {
    if (Matches(route.path, path)) return route.path;
  }
  return "other";
}

std::optional<HttpReply> Service::Refuse(const RequestHead& head, const std::string& address,
                                         std::string* client) {
  *client = address;
  bool path_is_known = false;
  std::string allowed;
  const Route* route = FindRoute(head.method, head.path, &path_is_known, &allowed);
  // A page of another site that reaches this server by a name of its choice (DNS rebinding).
  const std::string_view name = HostName(head.host);
  const bool host_is_known =
      IsLoopback(name) || std::find(options_.allowed_hosts.begin(), options_.allowed_hosts.end(),
                                    name) != options_.allowed_hosts.end();
  // HTTP/1.0 may leave the field out, and browsers do not speak that.
  if (!head.host.empty() && !host_is_known && (keys_.empty() || !options_.allowed_hosts.empty())) {
    return ErrorReply(
        StatusError(403, "permission_error", "host_not_allowed",
                    fmt::format("Host: found \"{}\", expected a loopback name or one of "
                                "--allowed-hosts",
                                name.substr(0, 80))));
  }
  if (head.method == "OPTIONS" && !options_.cors_origin.empty() && path_is_known) {
    HttpReply reply;
    reply.status = 204;
    reply.headers.emplace_back("Access-Control-Allow-Methods", allowed);
    reply.headers.emplace_back("Access-Control-Allow-Headers", "Authorization, Content-Type");
    return reply;
  }
  if (!path_is_known) {
    return ErrorReply(StatusError(404, "not_found_error", "not_found",
                                  "the path is none of this server's endpoints"));
  }
  if (route == nullptr) {
    HttpReply reply = ErrorReply(
        StatusError(405, "invalid_request_error", "method_not_allowed",
                    fmt::format("found {}, expected {}", head.method.substr(0, 16), allowed)));
    reply.headers.emplace_back("Allow", allowed);
    return reply;
  }
  const bool is_open = !route->needs_key || (head.path == "/metrics" && !options_.metrics_need_key);
  if (!keys_.empty() && !is_open) {
    std::string_view given = head.api_key;
    if (given.empty() && head.authorization.starts_with("Bearer ")) {
      given = std::string_view(head.authorization).substr(7);
    }
    const std::optional<std::string> key = keys_.Check(given);
    if (!key) {
      const auto second = std::chrono::duration_cast<std::chrono::seconds>(
                              std::chrono::steady_clock::now().time_since_epoch())
                              .count();
      if (second != wrong_keys_second_) wrong_keys_.clear();
      wrong_keys_second_ = second;
      if (++wrong_keys_[address] > kMostWrongKeys) {
        ApiError error =
            StatusError(429, "rate_limit_error", "client_limit", "too many wrong API keys");
        error.retry_after = 1;
        return ErrorReply(error);
      }
      HttpReply reply =
          ErrorReply(StatusError(401, "authentication_error", "invalid_api_key",
                                 given.empty() ? "no API key; expected Authorization: Bearer KEY"
                                               : "the API key is wrong"));
      reply.headers.emplace_back("WWW-Authenticate", "Bearer");
      return reply;
    }
    *client = *key;
  }
  if (head.method == "POST") {
    const std::string_view type =
        std::string_view(head.content_type).substr(0, head.content_type.find(';'));
    if (type != "application/json" ||
        !(head.content_encoding.empty() || head.content_encoding == "identity")) {
      return ErrorReply(
          StatusError(415, "invalid_request_error", "unsupported_media_type",
                      "expected Content-Type: application/json without a Content-Encoding"));
    }
  }
  if (head.path == "/live" || head.path == "/version" || head.path == "/health" ||
      head.path == "/metrics" || head.path == "/") {
    return std::nullopt;
  }
  if (state_ == State::kLoading || state_ == State::kDraining) {
    ApiError error = StatusError(
        503, "server_error", state_ == State::kLoading ? "loading" : "draining",
        state_ == State::kLoading ? "the model is being loaded" : "the server is shutting down");
    error.retry_after = 5;
    return ErrorReply(error);
  }
  return std::nullopt;
}

}  // namespace pmkvq::server
