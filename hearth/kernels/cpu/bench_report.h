// SPDX-License-Identifier: Apache-2.0
// Benchmark support: medians, the name of this machine, and result lines for bench/results (one JSON
// object per line, written here and never by hand). Single-threaded.
#pragma once

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include "hearth/base/result.h"

namespace hearth {

// Samples of one quantity.
class Samples {
 public:
  void add(double value) { values_.push_back(value); }
  double median() const { return percentile(50); }
  // Nearest rank; 0 where there are no samples.
  double percentile(double p) const {
    if (values_.empty()) return 0;
    std::vector<double> sorted = values_;
    std::sort(sorted.begin(), sorted.end());
    const auto rank = static_cast<size_t>(p / 100 * static_cast<double>(sorted.size() - 1) + 0.5);
    return sorted[rank];
  }

 private:
  std::vector<double> values_;
};

// Microseconds that f() takes.
template <class F>
double time_us(F&& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
}

// What was wanted, or the end of the program with what was wrong.
inline void or_exit(const Status& status) {
  if (status) return;
  fmt::print(stderr, "{}: {}\n", program_invocation_short_name, status.error().message);
  std::exit(exit_code(status.error().code));
}
template <class T>
T or_exit(Result<T> result) {
  if (!result) or_exit(Status(result.error()));
  return std::move(*result);
}

// A JSON string.
inline std::string quote(std::string_view text) {
  std::string quoted = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c;
  }
  return quoted + '"';
}

// Writes lines to a file; with an empty path nowhere.
class ResultLines {
 public:
  ResultLines(const std::string& path, int threads, int argc, char** argv, std::string note) : note_(std::move(note)) {
    if (!path.empty()) file_.open(path, std::ios::app);
    device_ = fmt::format("{}, {} threads", cpu_name(), threads);
    for (int i = 0; i < argc; ++i) command_ += fmt::format("{}{}", i ? " " : "", word(argv[i], i == 0));
    if (const char* commit = std::getenv("HEARTH_COMMIT")) {
      commit_ = commit;  // for programs that were carried to another machine
    } else if (std::FILE* git = popen("git rev-parse --short=12 HEAD 2>/dev/null", "r")) {
      char text[64] = {};
      if (std::fgets(text, sizeof(text), git) != nullptr)
        commit_ = std::string(text, std::string_view(text).find_last_not_of('\n') + 1);
      pclose(git);
    }
  }

  const std::string& device() const { return device_; }
  // For a benchmark of something else than the CPU.
  void set_device(std::string device) { device_ = std::move(device); }

  // `fields` is the JSON text of the line's own fields: "\"N\": 3, ...".
  void write(std::string_view bench, const std::string& fields) {
    if (!file_.is_open()) return;
    const std::time_t now = std::time(nullptr);
    char date[32];
    std::strftime(date, sizeof(date), "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&now));
    file_ << fmt::format("{{\"bench\": {}, \"date\": {}, \"commit\": {}, \"command\": {}, \"device\": {}, {}{}}}\n",
                         quote(bench), quote(date), quote(commit_), quote(command_), quote(device_), fields,
                         note_.empty() ? "" : ", \"note\": " + quote(note_));
    file_.flush();
  }

 private:
  static std::string word(std::string_view path, bool strip) {
    if (strip) path = path.substr(path.find_last_of('/') + 1);
    return path.find_first_of(" ()'") == std::string_view::npos ? std::string(path) : fmt::format("'{}'", path);
  }
  static std::string cpu_name() {
    std::ifstream info("/proc/cpuinfo");
    for (std::string line; std::getline(info, line);)
      if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
    return "unknown CPU";
  }

  std::ofstream file_;
  std::string device_, command_, commit_ = "unknown", note_;
};

}  // namespace hearth
