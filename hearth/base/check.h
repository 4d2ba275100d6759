// SPDX-License-Identifier: Apache-2.0
// HEARTH_CHECK: stops the process at our own bugs, in release too. Never for input: that is Result's.
#pragma once

#include <fmt/format.h>

#include <string>

namespace hearth {

struct SourceLoc {
  const char* file = "";
  int line = 0;
  static constexpr SourceLoc current(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

// Prints the failed condition with its message to stderr and aborts. Out of line and cold.
[[noreturn, gnu::cold]] void check_failed(const char* condition, const std::string& message, SourceLoc where);

}  // namespace hearth

// HEARTH_CHECK(condition, "format", args...)
#define HEARTH_CHECK(condition, ...)                                                                  \
  do {                                                                                                \
    if (!(condition)) [[unlikely]]                                                                    \
      ::hearth::check_failed(#condition, ::fmt::format(__VA_ARGS__), ::hearth::SourceLoc::current()); \
  } while (false)

// The same where NDEBUG is not set; the condition is compiled but not evaluated otherwise.
#ifdef NDEBUG
#define HEARTH_DCHECK(condition, ...)                \
  do {                                               \
    if (false) HEARTH_CHECK(condition, __VA_ARGS__); \
  } while (false)
#else
#define HEARTH_DCHECK(condition, ...) HEARTH_CHECK(condition, __VA_ARGS__)
#endif
