// SPDX-License-Identifier: Apache-2.0
// The process log: spdlog to stderr, so that stdout stays what a command prints. HEARTH_LOG_LEVEL
// (trace, debug, info, warn, error, off) sets the level. Any thread may log.
#pragma once

#include <spdlog/spdlog.h>

#include <string_view>

#include "hearth/base/result.h"

namespace hearth {

// Sets up the default logger; call once, from main. An unknown level is InvalidArgument.
Status init_log(std::string_view level);

}  // namespace hearth
