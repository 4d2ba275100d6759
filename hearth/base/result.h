// SPDX-License-Identifier: Apache-2.0
// Result<T>: a value or an Error, for everything that a user, a file, a network or a machine can cause.
// What only our own bug can cause is HEARTH_CHECK (check.h). The shape follows std::expected, which
// g++ 12 does not have. Any thread may use a Result that it owns.
#pragma once

#include <fmt/format.h>

#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>

#include "hearth/base/check.h"

namespace hearth {

// The ten kinds of failure. exit_code() maps them for the command line; the server maps them to HTTP.
enum class ErrorCode {
  kInvalidArgument,
  kNotFound,
  kCorrupt,
  kUnsupported,
  kResourceExhausted,
  kCancelled,
  kDeadlineExceeded,
  kUnavailable,
  kDeviceLost,
  kInternal,
};

std::string_view error_code_name(ErrorCode code);

// Process exit code of an error: 2 for what the caller said wrong (as every command line does), 3.. for
// the rest, never 0 or 1. 130 for a cancelled run, as shells report SIGINT.
int exit_code(ErrorCode code);

struct Error {
  ErrorCode code = ErrorCode::kInternal;
  std::string message;
  SourceLoc where;

  // Puts `context: ` before the message. Called once per layer.
  Error with_context(std::string_view context) && {
    message = fmt::format("{}: {}", context, message);
    return std::move(*this);
  }
};

template <class T>
class [[nodiscard]] Result {
 public:
  using value_type = T;

  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}      // NOLINT: implicit by design
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT: implicit by design

  explicit operator bool() const { return state_.index() == 0; }
  bool has_value() const { return state_.index() == 0; }

  // REQUIRES: has_value().
  T& value() & { return check(), std::get<0>(state_); }
  const T& value() const& { return check(), std::get<0>(state_); }
  T&& value() && { return check(), std::get<0>(std::move(state_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  // REQUIRES: !has_value().
  const Error& error() const& { return std::get<1>(state_); }
  Error&& error() && { return std::get<1>(std::move(state_)); }

  Result with_context(std::string_view context) && {
    if (has_value()) return std::move(*this);
    return std::move(*this).error().with_context(context);
  }

 private:
  void check() const { HEARTH_CHECK(has_value(), "value() of a failed Result: {}", std::get<1>(state_).message); }
  std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  using value_type = void;

  Result() = default;
  Result(Error error) : error_(std::move(error)) {}  // NOLINT: implicit by design

  explicit operator bool() const { return !error_.has_value(); }
  bool has_value() const { return !error_.has_value(); }

  // REQUIRES: !has_value().
  const Error& error() const& { return *error_; }
  Error&& error() && { return *std::move(error_); }

  Result with_context(std::string_view context) && {
    if (has_value()) return {};
    return (*std::move(error_)).with_context(context);
  }

 private:
  std::optional<Error> error_;
};

using Status = Result<void>;

// A format string that remembers where it was written.
template <class... Args>
struct FormatAt {
  fmt::format_string<Args...> format;
  SourceLoc where;
  template <class S>
  consteval FormatAt(const S& text, SourceLoc loc = SourceLoc::current())  // NOLINT: implicit by design
      : format(text), where(loc) {}
};

template <class... Args>
Error make_error(ErrorCode code, FormatAt<std::type_identity_t<Args>...> text, Args&&... args) {
  return {code, fmt::format(text.format, std::forward<Args>(args)...), text.where};
}

#define HEARTH_DEFINE_ERROR_(function, enumerator)                                                     \
  template <class... Args>                                                                             \
  Error function(FormatAt<std::type_identity_t<Args>...> text, Args&&... args) {                       \
    return {ErrorCode::enumerator, fmt::format(text.format, std::forward<Args>(args)...), text.where}; \
  }
HEARTH_DEFINE_ERROR_(invalid_argument, kInvalidArgument)
HEARTH_DEFINE_ERROR_(not_found, kNotFound)
HEARTH_DEFINE_ERROR_(corrupt, kCorrupt)
HEARTH_DEFINE_ERROR_(unsupported, kUnsupported)
HEARTH_DEFINE_ERROR_(resource_exhausted, kResourceExhausted)
HEARTH_DEFINE_ERROR_(cancelled, kCancelled)
HEARTH_DEFINE_ERROR_(deadline_exceeded, kDeadlineExceeded)
HEARTH_DEFINE_ERROR_(unavailable, kUnavailable)
HEARTH_DEFINE_ERROR_(device_lost, kDeviceLost)
HEARTH_DEFINE_ERROR_(internal_error, kInternal)
#undef HEARTH_DEFINE_ERROR_

}  // namespace hearth

#define HEARTH_CONCAT_INNER_(a, b) a##b
#define HEARTH_CONCAT_(a, b) HEARTH_CONCAT_INNER_(a, b)

// Returns the error of `expr` (a Result of any type) from the enclosing function; else drops the value.
#define HEARTH_TRY(expr)                                      \
  do {                                                        \
    if (auto hearth_try_ = (expr); !hearth_try_) [[unlikely]] \
      return std::move(hearth_try_).error();                  \
  } while (false)

// HEARTH_TRY_ASSIGN(auto x, f()): declares x from the value of f(), or returns f()'s error.
#define HEARTH_TRY_ASSIGN(declaration, ...) \
  HEARTH_TRY_ASSIGN_(HEARTH_CONCAT_(hearth_result_, __LINE__), declaration, __VA_ARGS__)
#define HEARTH_TRY_ASSIGN_(result, declaration, ...) \
  auto result = (__VA_ARGS__);                       \
  if (!result) [[unlikely]]                          \
    return std::move(result).error();                \
  declaration = std::move(result).value()
