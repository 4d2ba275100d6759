// SPDX-License-Identifier: Apache-2.0
#include "hearth/eval/results.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>

#include "hearth/base/version.h"

namespace hearth {

std::string cpu_device(int threads) {
  std::ifstream cpuinfo("/proc/cpuinfo");
  std::string model = "CPU";
  for (std::string line; std::getline(cpuinfo, line);) {
    if (line.rfind("model name", 0) != 0) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos && colon + 2 < line.size()) model = line.substr(colon + 2);
    break;
  }
  return fmt::format("{}, {} thread{}", model, threads, threads == 1 ? "" : "s");
}

std::string command_line(std::span<const char* const> args) {
  constexpr std::string_view kPlain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./=,:@%+";
  std::string line;
  for (const std::string_view arg : args) {
    if (!line.empty()) line += ' ';
    if (!arg.empty() && arg.find_first_not_of(kPlain) == std::string_view::npos) {
      line += arg;
      continue;
    }
    line += '\'';
    for (const char c : arg) c == '\'' ? line += "'\\''" : line += c;
    line += '\'';
  }
  return line;
}

std::string iso_date(int64_t seconds_since_1970) {
  const std::time_t time = seconds_since_1970;
  std::tm utc{};
  gmtime_r(&time, &utc);
  char text[32];
  return {text, std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc)};
}

nlohmann::json result_line(std::string_view bench, std::string_view device, std::string_view command) {
  return {{"bench", bench},
          {"date", iso_date(std::time(nullptr))},
          {"commit", build_info().commit},
          {"command", command},
          {"device", device}};
}

Status append_result(const std::filesystem::path& file, const nlohmann::json& line) {
  const std::string text = line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + '\n';
  const int fd = open(file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (fd < 0) return unavailable("cannot open {} for writing: {}", file.string(), std::strerror(errno));
  const ssize_t written = write(fd, text.data(), text.size());
  const int error = errno;
  const bool closed = close(fd) == 0;
  if (written != std::ssize(text) || !closed)
    return unavailable("cannot write to {}: {}", file.string(),
                       written < 0 ? std::strerror(error) : "only a part was written");
  return {};
}

}  // namespace hearth
