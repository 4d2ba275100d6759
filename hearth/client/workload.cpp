// SPDX-License-Identifier: Apache-2.0
// Pure functions. Each kind of draw has its own stream of the seed, so that one more setting of one kind leaves the
// others as they were.
#include "hearth/client/workload.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cmath>
#include <nlohmann/json.hpp>

#include "hearth/base/random.h"

namespace hearth {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kArrivalStream = uint64_t{1} << 62;
constexpr uint64_t kPromptStream = uint64_t{1} << 61;
constexpr double kClockSkewS = 1;
constexpr size_t kShownBytes = 80;

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t' || text.back() == '\r')) text.remove_suffix(1);
  if (text.size() >= 2 && text.front() == '"' && text.back() == '"') text = text.substr(1, text.size() - 2);
  return text;
}

// The next line of `rest`, without its end.
std::string_view next_line(std::string_view& rest) {
  const size_t end = rest.find('\n');
  const std::string_view line = rest.substr(0, end);
  rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
  return line;
}

std::vector<std::string_view> cells_of(std::string_view line) {
  std::vector<std::string_view> cells;
  for (size_t begin = 0; begin <= line.size();) {
    const size_t comma = std::min(line.find(',', begin), line.size());
    cells.push_back(trim(line.substr(begin, comma - begin)));
    begin = comma + 1;
  }
  return cells;
}

template <class T>
std::optional<T> number(std::string_view text) {
  T value{};
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || stop != text.data() + text.size()) return std::nullopt;
  return value;
}

std::optional<size_t> column(const std::vector<std::string_view>& header,
                             std::initializer_list<std::string_view> names) {
  for (const std::string_view name : names) {
    const auto found = std::find(header.begin(), header.end(), name);
    if (found != header.end()) return static_cast<size_t>(found - header.begin());
  }
  return std::nullopt;
}

struct Columns {
  size_t count = 0, input = 0, output = 0;
  std::optional<size_t> time;
};

Result<Columns> read_header(std::string_view line) {
  if (line.starts_with("\xEF\xBB\xBF")) line.remove_prefix(3);
  const std::vector<std::string_view> header = cells_of(line);
  const auto input = column(header, {"ContextTokens", "num_prefill_tokens", "input_tokens"});
  const auto output = column(header, {"GeneratedTokens", "num_decode_tokens", "output_tokens"});
  if (!input || !output)
    return invalid_argument(
        "line 1: the columns are {}; wanted TIMESTAMP,ContextTokens,GeneratedTokens or "
        "num_prefill_tokens,num_decode_tokens or input_tokens,output_tokens",
        line.substr(0, kShownBytes));
  return Columns{.count = header.size(),
                 .input = *input,
                 .output = *output,
                 .time = column(header, {"TIMESTAMP", "timestamp", "arrival_s"})};
}

Result<int64_t> read_tokens(std::string_view cell, int64_t line, const char* what) {
  const auto tokens = number<int64_t>(cell);
  if (!tokens || *tokens < 0)
    return corrupt("line {}: {} '{}' is not a number of tokens", line, what, cell.substr(0, kShownBytes));
  return std::max<int64_t>(1, *tokens);
}

}  // namespace

std::vector<double> draw_arrivals(int64_t count, double rate, double burstiness, uint64_t seed) {
  HEARTH_CHECK(rate > 0 && burstiness > 0, "arrivals: rate {}, burstiness {}", rate, burstiness);
  std::vector<double> arrivals(static_cast<size_t>(count));
  if (std::isinf(rate)) return arrivals;
  Random random(seed, kArrivalStream);
  double now = 0;
  for (double& arrival : arrivals) {
    arrival = now;
    now += gamma(burstiness, random) / (burstiness * rate);
  }
  return arrivals;
}

std::vector<int64_t> draw_lengths(int64_t count, int64_t mean, double ratio, uint64_t seed, uint64_t stream) {
  HEARTH_CHECK(mean >= 1 && ratio >= 0 && ratio < 1, "lengths: mean {}, ratio {}", mean, ratio);
  const auto low = std::max<int64_t>(1, static_cast<int64_t>(std::floor(static_cast<double>(mean) * (1 - ratio))));
  const auto high = std::max<int64_t>(low, static_cast<int64_t>(std::ceil(static_cast<double>(mean) * (1 + ratio))));
  Random random(seed, kArrivalStream + 1 + stream);
  std::vector<int64_t> lengths(static_cast<size_t>(count));
  for (int64_t& length : lengths) length = low + random.below(high - low + 1);
  return lengths;
}

std::optional<double> parse_timestamp(std::string_view text) {
  if (const auto seconds = number<double>(text)) return std::isfinite(*seconds) ? seconds : std::nullopt;
  if (text.ends_with('Z')) text.remove_suffix(1);
  if (text.size() < 19 || text[4] != '-' || text[7] != '-' || (text[10] != ' ' && text[10] != 'T') || text[13] != ':' ||
      text[16] != ':')
    return std::nullopt;
  const auto year = number<int>(text.substr(0, 4));
  const auto month = number<unsigned>(text.substr(5, 2)), day = number<unsigned>(text.substr(8, 2));
  const auto hour = number<unsigned>(text.substr(11, 2)), minute = number<unsigned>(text.substr(14, 2));
  const auto second = number<double>(text.substr(17));
  if (!year || !month || !day || !hour || !minute || !second) return std::nullopt;
  const std::chrono::year_month_day date{std::chrono::year(*year), std::chrono::month(*month), std::chrono::day(*day)};
  const bool valid = date.ok() && *hour < 24 && *minute < 60 && *second >= 0 && *second < 61;
  if (!valid) return std::nullopt;
  const auto days = std::chrono::sys_days(date).time_since_epoch().count();
  return static_cast<double>(days) * 86400 + *hour * 3600 + *minute * 60 + *second;
}

Result<Trace> parse_trace(std::string_view csv) {
  std::string_view rest = csv;
  HEARTH_TRY_ASSIGN(const Columns columns, read_header(next_line(rest)));
  Trace trace;
  trace.has_times = columns.time.has_value();
  double first = 0, latest = 0;
  for (int64_t line_number = 2; !rest.empty(); ++line_number) {
    const std::string_view line = next_line(rest);
    if (trim(line).empty()) continue;
    const std::vector<std::string_view> cells = cells_of(line);
    if (cells.size() != columns.count)
      return corrupt("line {}: {} columns, wanted {}: {}", line_number, cells.size(), columns.count,
                     trim(line.substr(0, kShownBytes)));
    PlannedRequest request;
    HEARTH_TRY_ASSIGN(request.input_tokens, read_tokens(cells[columns.input], line_number, "prompt length"));
    HEARTH_TRY_ASSIGN(request.output_tokens, read_tokens(cells[columns.output], line_number, "output length"));
    if (columns.time) {
      const std::string_view cell = cells[*columns.time];
      const auto time = parse_timestamp(cell);
      if (!time)
        return corrupt("line {}: time '{}'; wanted YYYY-MM-DD HH:MM:SS[.F] or seconds", line_number,
                       cell.substr(0, kShownBytes));
      if (trace.requests.empty()) first = latest = *time;
      if (*time < latest - kClockSkewS)
        return corrupt("line {}: time '{}' is {:.3f} s before the line above", line_number, cell, latest - *time);
      latest = std::max(latest, *time);
      request.arrival_s = latest - first;
    }
    trace.requests.push_back(request);
  }
  if (trace.requests.empty()) return invalid_argument("no requests: the file has a header and no lines below it");
  return trace;
}

std::vector<int32_t> draw_prompt(const std::vector<int32_t>& ids, int64_t tokens, uint64_t seed, uint64_t index) {
  Random random(seed, kPromptStream + index);
  std::vector<int32_t> prompt(static_cast<size_t>(tokens));
  for (int32_t& id : prompt) id = ids[static_cast<size_t>(random.below(std::ssize(ids)))];
  return prompt;
}

std::string draw_text(int64_t words, uint64_t seed, uint64_t index) {
  static constexpr std::array<std::string_view, 64> kWords = {
      "the",  "of",   "and",  "to",   "in",   "is",    "was",   "he",    "for",   "it",    "with",  "as",   "his",
      "on",   "be",   "at",   "by",   "had",  "not",   "are",   "but",   "from",  "or",    "have",  "an",   "they",
      "one",  "you",  "were", "her",  "all",  "she",   "there", "would", "their", "we",    "him",   "been", "has",
      "when", "who",  "will", "more", "no",   "if",    "out",   "so",    "said",  "what",  "up",    "its",  "about",
      "than", "into", "them", "can",  "only", "other", "new",   "some",  "time",  "could", "these", "two"};
  Random random(seed, kPromptStream + index);
  std::string text;
  for (int64_t i = 0; i < words; ++i) {
    if (i > 0) text += ' ';
    text += kWords[static_cast<size_t>(random.below(std::ssize(kWords)))];
  }
  return text;
}

Result<std::vector<PromptLine>> parse_prompt_lines(std::string_view jsonl) {
  std::vector<PromptLine> lines;
  std::string_view rest = jsonl;
  for (int64_t line_number = 1; !rest.empty(); ++line_number) {
    const std::string_view text = next_line(rest);
    if (trim(text).empty()) continue;
    const Json json = Json::parse(text, nullptr, false);
    const auto bad = [&](std::string_view what) {
      return corrupt("line {}: {}; wanted an object with \"prompt\" (a text or a list of ids) or \"messages\"",
                     line_number, what);
    };
    if (!json.is_object()) return bad("not a JSON object");
    PromptLine line;
    const auto prompt = json.find("prompt"), messages = json.find("messages"), tokens = json.find("max_tokens");
    if (prompt != json.end()) {
      const bool ids =
          prompt->is_array() && !prompt->empty() &&
          std::all_of(prompt->begin(), prompt->end(), [](const Json& id) { return id.is_number_integer(); });
      if (!prompt->is_string() && !ids) return bad("its prompt is neither");
      if (ids) line.input_tokens = std::ssize(*prompt);
      line.prompt_json = prompt->dump(-1, ' ', false, Json::error_handler_t::replace);
    } else if (messages != json.end() && messages->is_array()) {
      line.messages_json = messages->dump(-1, ' ', false, Json::error_handler_t::replace);
    } else {
      return bad("it has neither");
    }
    if (tokens != json.end()) {
      if (!tokens->is_number_integer() || tokens->get<int64_t>() < 1)
        return corrupt("line {}: its max_tokens is not a number of at least 1", line_number);
      line.output_tokens = tokens->get<int64_t>();
    }
    lines.push_back(std::move(line));
  }
  if (lines.empty()) return invalid_argument("no prompts: the file has no lines");
  return lines;
}

}  // namespace hearth
