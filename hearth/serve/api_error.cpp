// SPDX-License-Identifier: Apache-2.0
// The table from errors to statuses, and OpenAI's error object. Pure functions.
#include "hearth/serve/api_error.h"

#include <nlohmann/json.hpp>

namespace hearth {
namespace {

constexpr const char* kInvalidRequest = "invalid_request_error";
constexpr const char* kServerError = "server_error";

struct Row {
  ErrorCode code;
  int status;
  const char* type;
  const char* api_code;  // empty: null
  int retry_after_s;
};

// Statuses of 500 and more are tried again by the official clients, so what another try cannot help is 4xx.
constexpr Row kTable[] = {
    {ErrorCode::kInvalidArgument, 400, kInvalidRequest, "", 0},
    {ErrorCode::kNotFound, 404, kInvalidRequest, "not_found", 0},
    {ErrorCode::kCorrupt, 500, kServerError, "corrupt", 0},
    {ErrorCode::kUnsupported, 400, kInvalidRequest, "unsupported", 0},
    {ErrorCode::kResourceExhausted, 503, kServerError, "overloaded", 1},
    {ErrorCode::kCancelled, 503, kServerError, "cancelled", 1},
    {ErrorCode::kDeadlineExceeded, 504, kServerError, "deadline_exceeded", 0},
    {ErrorCode::kUnavailable, 503, kServerError, "unavailable", 1},
    {ErrorCode::kDeviceLost, 503, kServerError, "device_lost", 10},
    {ErrorCode::kInternal, 500, kServerError, "internal", 0},
};

nlohmann::ordered_json string_or_null(const std::string& text) {
  return text.empty() ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(text);
}

}  // namespace

ApiError to_api_error(const Error& error) {
  for (const Row& row : kTable)
    if (row.code == error.code)
      return {.status = row.status,
              .type = row.type,
              .message = error.message,
              .param = {},
              .code = row.api_code,
              .retry_after_s = row.retry_after_s};
  return {.message = error.message};
}

std::string error_json(const ApiError& error) {
  const nlohmann::ordered_json body = {{"error",
                                        {{"message", error.message},
                                         {"type", error.type},
                                         {"param", string_or_null(error.param)},
                                         {"code", string_or_null(error.code)}}}};
  return body.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

std::string error_json(int status, std::string_view message) {
  ApiError error{
      .status = status, .type = status < 500 ? kInvalidRequest : kServerError, .message = std::string(message)};
  switch (status) {
    case 408: error.code = "request_timeout"; break;
    case 413: error.code = "request_too_large"; break;
    case 431: error.code = "header_too_large"; break;
    case 503: error.code = "overloaded"; break;
    default: break;
  }
  return error_json(error);
}

ApiError over_limit(std::string param, std::string message) {
  return {.status = 400,
          .type = kInvalidRequest,
          .message = std::move(message),
          .param = std::move(param),
          .code = "limit_exceeded"};
}

ApiError too_long(std::string param, std::string message) {
  return {.status = 400,
          .type = kInvalidRequest,
          .message = std::move(message),
          .param = std::move(param),
          .code = "context_length_exceeded"};
}

ApiError no_such_model(std::string message) {
  return {.status = 404,
          .type = kInvalidRequest,
          .message = std::move(message),
          .param = "model",
          .code = "model_not_found"};
}

ApiError no_such_route(std::string_view method, std::string_view path) {
  return {.status = 404,
          .type = kInvalidRequest,
          .message = fmt::format("no route {} {}; the routes are in docs/guides/api.md", method, path),
          .param = {},
          .code = "not_found"};
}

ApiError wrong_method(std::string_view method, std::string_view path, std::string_view allowed) {
  return {.status = 405,
          .type = kInvalidRequest,
          .message = fmt::format("{} is asked with {}, not {}", path, allowed, method),
          .param = {},
          .code = "method_not_allowed"};
}

ApiError wrong_key(std::string message) {
  return {
      .status = 401, .type = kInvalidRequest, .message = std::move(message), .param = {}, .code = "invalid_api_key"};
}

ApiError too_many(std::string message) {
  return {.status = 429,
          .type = "rate_limit_error",
          .message = std::move(message),
          .param = {},
          .code = "rate_limit_exceeded",
          .retry_after_s = 1};
}

ApiError not_now(std::string code, std::string message, int retry_after_s) {
  return {.status = 503,
          .type = kServerError,
          .message = std::move(message),
          .param = {},
          .code = std::move(code),
          .retry_after_s = retry_after_s};
}

}  // namespace hearth
