// SPDX-License-Identifier: Apache-2.0
#include "hearth/eval/report_state.h"

#include <nlohmann/json.hpp>

#include "hearth/checkpoint/json.h"
#include "hearth/eval/results.h"
#include "hearth/eval/tokens.h"

namespace hearth {
namespace {

constexpr const char* kHeader = "hearth_report_state";
constexpr int kVersion = 1;

template <class T>
bool read_numbers(const nlohmann::json& line, const char* field, std::vector<T>& out) {
  const auto found = line.find(field);
  if (found == line.end() || !found->is_array()) return false;
  for (const nlohmann::json& entry : *found) {
    if (std::is_integral_v<T> ? !entry.is_number_integer() : !entry.is_number()) return false;
    out.push_back(entry.get<T>());
  }
  return true;
}

// Cuts off what follows the last newline: a line that was not written whole.
Status cut_torn_line(const std::filesystem::path& path, std::string& text) {
  const size_t whole = text.rfind('\n') == std::string::npos ? 0 : text.rfind('\n') + 1;
  if (whole == text.size()) return {};
  text.resize(whole);
  std::error_code code;
  std::filesystem::resize_file(path, whole, code);
  if (code) return unavailable("cannot cut {} after its last whole line: {}", path.string(), code.message());
  return {};
}

}  // namespace

Result<ReportState> ReportState::open(const std::filesystem::path& path) {
  ReportState state;
  state.path_ = path;
  if (path.empty()) return state;
  std::string text;
  std::error_code code;
  if (std::filesystem::exists(path, code)) {
    HEARTH_TRY_ASSIGN(text, read_text_file(path));
    // A file of another kind is not cut: its first line says so.
    if (!text.empty() && text.find(kHeader) == std::string::npos)
      return corrupt("{} is no state of a report; wanted one, or a new name", path.string());
    HEARTH_TRY(cut_torn_line(path, text));
  }
  if (text.empty()) {
    HEARTH_TRY(append_result(path, {{kHeader, kVersion}}));
    return state;
  }
  std::string_view rest = text;
  for (int64_t number = 1; !rest.empty(); ++number) {
    const size_t end = rest.find('\n');
    const Status read = state.read_line(rest.substr(0, end));
    if (!read) return Error(read.error()).with_context(fmt::format("{}, line {}", path.string(), number));
    rest.remove_prefix(end + 1);
  }
  return state;
}

Status ReportState::read_line(std::string_view text) {
  HEARTH_TRY_ASSIGN(const nlohmann::json line, parse_json(text));
  if (!line.is_object()) return corrupt("not an object");
  if (const auto version = line.find(kHeader); version != line.end()) {
    if (*version != kVersion)
      return unsupported("version {} of a report's state; wanted {}", version->dump(), kVersion);
    return {};
  }
  const auto key = line.find("key");
  if (key == line.end() || !key->is_string()) return corrupt("no string 'key'");
  std::vector<int64_t> numbers;
  std::vector<double> sums;
  if (line.contains("items")) {
    std::vector<int64_t> hits;
    if (!read_numbers(line, "items", numbers) || !read_numbers(line, "hits", hits) ||
        !read_numbers(line, "logprobs", sums) || hits.size() != numbers.size() || sums.size() != numbers.size())
      return corrupt("'items', 'hits' and 'logprobs' are not lists of numbers of one length");
    for (size_t i = 0; i < numbers.size(); ++i)
      items_[key->get<std::string>()][numbers[i]] = {.hit = hits[i] != 0, .logprob = sums[i]};
    return {};
  }
  // [window, same_top] and [nll, nll_reference, kl, kl_max]
  if (!read_numbers(line, "window", numbers) || !read_numbers(line, "sums", sums) || numbers.size() != 2 ||
      sums.size() != 4)
    return corrupt("'window' and 'sums' are not lists of two and four numbers");
  windows_[key->get<std::string>()][numbers[0]] = {
      .nll = sums[0], .nll_reference = sums[1], .kl = sums[2], .kl_max = sums[3], .same_top = numbers[1]};
  return {};
}

const WindowSums* ReportState::window(const std::string& key, int64_t window) const {
  const auto of_key = windows_.find(key);
  if (of_key == windows_.end()) return nullptr;
  const auto found = of_key->second.find(window);
  return found == of_key->second.end() ? nullptr : &found->second;
}

const LambadaScore* ReportState::item(const std::string& key, int64_t item) const {
  const auto of_key = items_.find(key);
  if (of_key == items_.end()) return nullptr;
  const auto found = of_key->second.find(item);
  return found == of_key->second.end() ? nullptr : &found->second;
}

Status ReportState::add_window(const std::string& key, std::string_view note, int64_t window, const WindowSums& sums) {
  if (!path_.empty()) {
    HEARTH_TRY(append_result(path_, {{"key", key},
                                     {"note", note},
                                     {"window", {window, sums.same_top}},
                                     {"sums", {sums.nll, sums.nll_reference, sums.kl, sums.kl_max}}}));
  }
  windows_[key][window] = sums;
  return {};
}

Status ReportState::add_items(const std::string& key, std::string_view note, std::span<const int64_t> items,
                              std::span<const LambadaScore> scores) {
  HEARTH_CHECK(items.size() == scores.size(), "{} items, {} scores", items.size(), scores.size());
  if (!path_.empty()) {
    nlohmann::json hits = nlohmann::json::array(), logprobs = nlohmann::json::array();
    for (const LambadaScore& score : scores) {
      hits.push_back(score.hit ? 1 : 0);
      logprobs.push_back(score.logprob);
    }
    HEARTH_TRY(append_result(path_, {{"key", key},
                                     {"note", note},
                                     {"items", items},
                                     {"hits", std::move(hits)},
                                     {"logprobs", std::move(logprobs)}}));
  }
  for (size_t i = 0; i < items.size(); ++i) items_[key][items[i]] = scores[i];
  return {};
}

}  // namespace hearth
