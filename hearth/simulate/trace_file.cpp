// SPDX-License-Identifier: Apache-2.0
// CSV, or a line of JSON for each request.
#include "hearth/simulate/trace_file.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

namespace hearth {
namespace {

constexpr int64_t kMostTokens = 1'000'000'000;
constexpr double kMostSeconds = 1e9;

// Which field of a row is what; -1: none is.
struct Columns {
  int64_t width = 0;
  int64_t timestamp = -1, arrival = -1, model = -1, input = -1, output = -1;
};

std::vector<std::string_view> fields_of(std::string_view line) {
  std::vector<std::string_view> fields;
  while (true) {
    const size_t comma = line.find(',');
    fields.push_back(line.substr(0, comma));
    if (comma == std::string_view::npos) return fields;
    line.remove_prefix(comma + 1);
  }
}

// All of the text as a number.
template <typename T>
std::optional<T> number(std::string_view text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

Result<Columns> columns_of(std::string_view header) {
  Columns columns;
  const std::vector<std::string_view> names = fields_of(header);
  columns.width = std::ssize(names);
  for (int64_t i = 0; i < columns.width; ++i) {
    const std::string_view name = names[static_cast<size_t>(i)];
    if (name == "TIMESTAMP") columns.timestamp = i;
    if (name == "arrival_s") columns.arrival = i;
    if (name == "model") columns.model = i;
    if (name == "ContextTokens" || name == "input_tokens") columns.input = i;
    if (name == "GeneratedTokens" || name == "output_tokens") columns.output = i;
  }
  if ((columns.timestamp < 0) == (columns.arrival < 0))
    return corrupt("'{}'; wanted one column of TIMESTAMP and arrival_s", header);
  if (columns.input < 0) return corrupt("'{}'; wanted a column ContextTokens or input_tokens", header);
  if (columns.output < 0) return corrupt("'{}'; wanted a column GeneratedTokens or output_tokens", header);
  return columns;
}

// "2023-11-16 18:15:46.6805900", with "+00:00" behind it or not; microseconds since 1970.
std::optional<int64_t> date_us(std::string_view text) {
  if (text.ends_with("+00:00")) text.remove_suffix(6);
  if (text.size() < 19 || text[4] != '-' || text[7] != '-' || (text[10] != ' ' && text[10] != 'T') || text[13] != ':' ||
      text[16] != ':' || (text.size() > 19 && text[19] != '.') || text.size() == 20)
    return std::nullopt;
  std::array<int64_t, 6> part{};
  constexpr std::array<size_t, 6> kBegin{0, 5, 8, 11, 14, 17};
  for (size_t i = 0; i < part.size(); ++i) {
    const auto value = number<uint32_t>(text.substr(kBegin[i], i == 0 ? 4 : 2));
    if (!value) return std::nullopt;
    part[i] = *value;
  }
  const std::chrono::year_month_day day(std::chrono::year(static_cast<int>(part[0])),
                                        std::chrono::month(static_cast<unsigned>(part[1])),
                                        std::chrono::day(static_cast<unsigned>(part[2])));
  if (!day.ok() || part[3] > 23 || part[4] > 59 || part[5] > 60) return std::nullopt;
  std::string fraction(text.size() > 20 ? text.substr(20, 6) : "");
  if (text.size() > 20 && !number<uint64_t>(text.substr(20))) return std::nullopt;
  fraction.resize(6, '0');
  const int64_t days = std::chrono::sys_days(day).time_since_epoch().count();
  return (((days * 24 + part[3]) * 60 + part[4]) * 60 + part[5]) * 1'000'000 + *number<int64_t>(fraction);
}

Result<int64_t> arrival(std::string_view text) {
  const auto seconds = number<double>(text);
  if (!seconds || !(*seconds >= 0 && *seconds <= kMostSeconds))
    return corrupt("arrival_s '{}'; wanted seconds from 0 to {}", text, kMostSeconds);
  return std::llround(*seconds * 1e6);
}

Result<int64_t> tokens(std::string_view text, const char* what) {
  const auto value = number<int64_t>(text);
  if (!value || *value < 1 || *value > kMostTokens)
    return corrupt("'{}' {} tokens; wanted a number from 1 to {}", text, what, kMostTokens);
  return *value;
}

Result<TraceRequest> request_of(std::string_view line, const Columns& columns) {
  const std::vector<std::string_view> fields = fields_of(line);
  if (std::ssize(fields) != columns.width)
    return corrupt("'{}' has {} fields; wanted {}", line, fields.size(), columns.width);
  const auto field = [&](int64_t column) { return fields[static_cast<size_t>(column)]; };
  TraceRequest request;
  if (columns.timestamp >= 0) {
    const auto us = date_us(field(columns.timestamp));
    if (!us) return corrupt("'{}' is no time; wanted 2023-11-16 18:15:46.680590", field(columns.timestamp));
    request.arrival_us = *us;
  } else {
    HEARTH_TRY_ASSIGN(request.arrival_us, arrival(field(columns.arrival)));
  }
  if (columns.model >= 0) request.model = field(columns.model);
  HEARTH_TRY_ASSIGN(request.input_tokens, tokens(field(columns.input), "input"));
  HEARTH_TRY_ASSIGN(request.output_tokens, tokens(field(columns.output), "output"));
  return request;
}

// As CSV's columns; a field that is missing is the text "null".
Result<TraceRequest> request_of_json(std::string_view line) {
  const nlohmann::json object = nlohmann::json::parse(line, nullptr, false);
  if (!object.is_object()) return corrupt("no object of JSON");
  const auto text = [&](const char* key) { return object.value(key, nlohmann::json()).dump(); };
  TraceRequest request;
  if (const auto model = object.find("model"); model != object.end() && model->is_string()) request.model = *model;
  HEARTH_TRY_ASSIGN(request.arrival_us, arrival(text("arrival_s")));
  HEARTH_TRY_ASSIGN(request.input_tokens, tokens(text("input_tokens"), "input"));
  HEARTH_TRY_ASSIGN(request.output_tokens, tokens(text("output_tokens"), "output"));
  return request;
}

}  // namespace

Result<std::vector<TraceRequest>> read_trace(const std::filesystem::path& path) {
  std::ifstream file(path);
  if (!file) return not_found("{}: cannot be read", path.string());
  std::vector<TraceRequest> trace;
  std::optional<Columns> columns;
  int64_t number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    const auto place = [&] { return fmt::format("{}:{}", path.string(), number); };
    if (line.ends_with('\r')) line.pop_back();
    if (line.empty() || line[0] == '#') continue;
    const bool json = line[0] == '{';
    if (!json && !columns) {
      HEARTH_TRY_ASSIGN(columns, columns_of(line).with_context(place()));
      continue;
    }
    Result<TraceRequest> request = json ? request_of_json(line) : request_of(line, *columns);
    if (!request) return Error(request.error()).with_context(place());
    trace.push_back(std::move(*request));
  }
  if (trace.empty()) return invalid_argument("{}: no request in it", path.string());
  std::ranges::stable_sort(trace, {}, &TraceRequest::arrival_us);
  if (const int64_t begin_us = trace.front().arrival_us; columns && columns->timestamp >= 0)
    for (TraceRequest& request : trace) request.arrival_us -= begin_us;
  return trace;
}

Result<std::vector<TraceRequest>> cut_trace(std::vector<TraceRequest> trace, const TraceCut& cut) {
  const bool told_apart = std::ranges::any_of(trace, [](const TraceRequest& r) { return !r.model.empty(); });
  if (told_apart) std::erase_if(trace, [&](const TraceRequest& r) { return r.model != cut.model; });
  if (trace.empty()) return invalid_argument("no request of model '{}' in it", cut.model);
  const int64_t offset_us = std::llround(cut.offset_s * 1e6), last_us = trace.back().arrival_us;
  std::erase_if(trace, [&](const TraceRequest& r) { return r.arrival_us < offset_us; });
  if (trace.empty())
    return invalid_argument("no request from {} s on: the last one comes at {} s", cut.offset_s,
                            static_cast<double>(last_us) * 1e-6);
  if (cut.limit > 0 && cut.limit < std::ssize(trace)) trace.resize(static_cast<size_t>(cut.limit));
  for (TraceRequest& request : trace)
    request.arrival_us = std::llround(static_cast<double>(request.arrival_us - offset_us) / cut.speed);
  return trace;
}

}  // namespace hearth
