// SPDX-License-Identifier: Apache-2.0
#include "hearth/base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>

#include <string>

namespace hearth {

Status init_log(std::string_view level) {
  const auto parsed = spdlog::level::from_str(std::string(level));
  if (parsed == spdlog::level::off && level != "off")
    return invalid_argument("log level '{}' is unknown; wanted trace, debug, info, warn, error or off", level);
  try {
    auto logger = std::make_shared<spdlog::logger>("hearth", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
    logger->set_pattern("%^%l%$ %v");
    logger->set_level(parsed);
    spdlog::set_default_logger(std::move(logger));
  } catch (const std::exception& e) {
    return internal_error("cannot start the log: {}", e.what());
  }
  return {};
}

}  // namespace hearth
