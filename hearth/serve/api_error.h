// SPDX-License-Identifier: Apache-2.0
// ApiError: a refusal as clients see it: an HTTP status and OpenAI's error object. ApiResult<T> is the Result of
// functions that read requests: HEARTH_TRY and HEARTH_TRY_ASSIGN work with it, and an Error of a lower layer
// becomes an ApiError by one table. Pure; any thread.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "hearth/base/result.h"

namespace hearth {

struct ApiError {
  int status = 500;
  std::string type = "server_error";
  std::string message;
  std::string param;      // the field; empty: null
  std::string code;       // empty: null
  int retry_after_s = 0;  // 0: no Retry-After
};

// What an Error of a lower layer is to a client.
ApiError to_api_error(const Error& error);

// {"error":{"message":...,"type":...,"param":...,"code":...}}, all four keys always.
std::string error_json(const ApiError& error);
// The same for a status that the HTTP layer answers by itself.
std::string error_json(int status, std::string_view message);

// 400. `param` names the field.
template <class... Args>
ApiError bad_request(std::string param, fmt::format_string<Args...> format, Args&&... args) {
  return {.status = 400,
          .type = "invalid_request_error",
          .message = fmt::format(format, std::forward<Args>(args)...),
          .param = std::move(param)};
}

// 400: a limit of the server, or work that does not end within one. To ask again would not help.
ApiError over_limit(std::string param, std::string message);
// 400, code context_length_exceeded.
ApiError too_long(std::string param, std::string message);
// 404, code model_not_found.
ApiError no_such_model(std::string message);
// 404 and 405.
ApiError no_such_route(std::string_view method, std::string_view path);
ApiError wrong_method(std::string_view method, std::string_view path, std::string_view allowed);
// 401, code invalid_api_key.
ApiError wrong_key(std::string message);
// 429, code rate_limit_exceeded.
ApiError too_many(std::string message);
// 503. `code`: overloaded, loading, draining, ...
ApiError not_now(std::string code, std::string message, int retry_after_s = 1);

template <class T>
class [[nodiscard]] ApiResult {
 public:
  ApiResult(T value) : state_(std::in_place_index<0>, std::move(value)) {}                // NOLINT: implicit
  ApiResult(ApiError error) : state_(std::in_place_index<1>, std::move(error)) {}         // NOLINT: implicit
  ApiResult(const Error& error) : state_(std::in_place_index<1>, to_api_error(error)) {}  // NOLINT: implicit

  explicit operator bool() const { return state_.index() == 0; }
  // REQUIRES: a value.
  T& value() & { return check(), std::get<0>(state_); }
  const T& value() const& { return check(), std::get<0>(state_); }
  T&& value() && { return check(), std::get<0>(std::move(state_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  // REQUIRES: no value.
  const ApiError& error() const& { return std::get<1>(state_); }
  ApiError&& error() && { return std::get<1>(std::move(state_)); }

 private:
  void check() const { HEARTH_CHECK(state_.index() == 0, "value() of a failed ApiResult"); }
  std::variant<T, ApiError> state_;
};

// The ApiResult of a function without a value.
class [[nodiscard]] ApiStatus {
 public:
  ApiStatus() = default;
  ApiStatus(ApiError error) : error_(std::move(error)) {}         // NOLINT: implicit by design
  ApiStatus(const Error& error) : error_(to_api_error(error)) {}  // NOLINT: implicit by design

  explicit operator bool() const { return !error_.has_value(); }
  const ApiError& error() const& { return *error_; }
  ApiError&& error() && { return *std::move(error_); }

 private:
  std::optional<ApiError> error_;
};

}  // namespace hearth
