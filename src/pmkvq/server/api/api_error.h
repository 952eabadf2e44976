// What a client is told when a request cannot be served.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace pmkvq::server {

struct ApiError {
  int status = 400;
  std::string type = "invalid_request_error";
  std::string code;
  std::string message;  // Field, value found, what was expected.
  std::string param;    // The field; "": none.
  int retry_after = 0;  // Seconds, as a header; 0: none.
};

// Thrown while a request is read; becomes the reply.
class RefusedRequest : public std::runtime_error {
 public:
  explicit RefusedRequest(ApiError refusal)
      : std::runtime_error(refusal.message), error_(std::move(refusal)) {}
  const ApiError& error() const { return error_; }

 private:
  ApiError error_;
};

// 400. `code`: invalid_value, unsupported_parameter, ...
ApiError InvalidRequest(const std::string& code, const std::string& param,
                        const std::string& message);

ApiError StatusError(int status, const char* type, const char* code, std::string message);

// The text of an Error (base/error.h) without the brackets around its place: "field: found ...".
std::string WithoutBrackets(const std::string& text);

// Likewise without the place, which may be a file of the server that no client need know.
std::string WithoutPlace(const std::string& text);

// {"error": {"message", "type", "param", "code"}}
std::string ErrorBody(const ApiError& error);

}  // namespace pmkvq::server
