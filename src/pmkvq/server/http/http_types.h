// Requests and replies as the service sees them; no HTTP library.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace pmkvq::server {

struct RequestHead {
  std::string method;  // "GET"
  std::string path;    // Without the query.
  std::string host;
  std::string origin;
  std::string content_type;
  std::string content_encoding;
  std::string authorization;
  std::string api_key;     // X-Api-Key
  std::string request_id;  // The client's where it is a proper one, else one of ours.
};

struct HttpReply {
  int status = 200;
  std::string body;
  std::string content_type = "application/json";
  std::vector<std::pair<std::string, std::string>> headers;
  std::string error_code;  // Of an error that no line of the log has yet; else "".
  bool closes = false;     // The connection ends behind it.
};

}  // namespace pmkvq::server
