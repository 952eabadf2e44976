#include "pmkvq/server/api/api_error.h"

#include "pmkvq/io/json.h"

namespace pmkvq::server {

ApiError InvalidRequest(const std::string& code, const std::string& param,
                        const std::string& message) {
  ApiError error;
  error.code = code;
  error.param = param;
  error.message = message;
  return error;
}

ApiError StatusError(int status, const char* type, const char* code, std::string message) {
  ApiError error;
  error.status = status;
  error.type = type;
  error.code = code;
  error.message = std::move(message);
  return error;
}

std::string WithoutBrackets(const std::string& text) {
  const size_t end = text.find("] ");
  if (!text.starts_with("[") || end == std::string::npos) return text;
  return text.substr(1, end - 1) + ": " + text.substr(end + 2);
}

std::string WithoutPlace(const std::string& text) {
  const size_t end = text.find("] ");
  return text.starts_with("[") && end != std::string::npos ? text.substr(end + 2) : text;
}

std::string ErrorBody(const ApiError& error) {
  JsonWriter json;
  json.BeginObject().Key("error").BeginObject();
  json.Key("message").String(error.message);
  json.Key("type").String(error.type);
  json.Key("param");
  error.param.empty() ? json.Null() : json.String(error.param);
  json.Key("code").String(error.code);
  json.EndObject().EndObject();
  return json.text();
}

}  // namespace pmkvq::server
