// SPDX-License-Identifier: Apache-2.0
#include "hearth/base/check.h"

#include <cstdio>
#include <cstdlib>

namespace hearth {

void check_failed(const char* condition, const std::string& message, SourceLoc where) {
  std::fprintf(stderr, "%s:%d: CHECK failed: %s: %s\n", where.file, where.line, condition, message.c_str());
  std::fflush(stderr);
  std::abort();
}

}  // namespace hearth
