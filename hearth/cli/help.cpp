// SPDX-License-Identifier: Apache-2.0
#include "hearth/cli/help.h"

#include <algorithm>

namespace hearth {
namespace {

constexpr size_t kIndent = 30, kWidth = 110;

// `left` and the wrapped text beside it, or below it where it is long.
std::string two_columns(const std::string& left, std::string_view text) {
  std::string line = "  " + left;
  if (line.size() + 2 > kIndent) {
    line += '\n';
    line.append(kIndent, ' ');
  } else {
    line.append(kIndent - line.size(), ' ');
  }
  return line + wrap(text, kIndent, kWidth) + '\n';
}

class HelpFormatter final : public CLI::Formatter {
 public:
  std::string make_option(const CLI::Option* option, bool is_positional) const override {
    const std::string type = option->get_type_name();
    return two_columns(make_option_name(option, is_positional) + (type.empty() ? "" : " " + type),
                       option->get_description());
  }
  std::string make_subcommand(const CLI::App* command) const override {
    return two_columns(command->get_name(), command->get_description());
  }
};

// Letters to insert, drop, replace, or swap with a neighbour.
int64_t edit_distance(std::string_view a, std::string_view b) {
  const size_t columns = b.size() + 1;
  std::vector<int64_t> cells((a.size() + 1) * columns);
  const auto at = [&](size_t i, size_t j) -> int64_t& { return cells[i * columns + j]; };
  for (size_t i = 0; i <= a.size(); ++i) at(i, 0) = static_cast<int64_t>(i);
  for (size_t j = 0; j <= b.size(); ++j) at(0, j) = static_cast<int64_t>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      at(i, j) = std::min({at(i - 1, j - 1) + (a[i - 1] != b[j - 1]), at(i - 1, j) + 1, at(i, j - 1) + 1});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        at(i, j) = std::min(at(i, j), at(i - 2, j - 2) + 1);
    }
  }
  return cells.back();
}

}  // namespace

std::shared_ptr<CLI::FormatterBase> help_formatter() { return std::make_shared<HelpFormatter>(); }

std::string wrap(std::string_view text, size_t indent, size_t width) {
  std::string out;
  size_t column = indent;
  while (true) {
    const size_t begin = text.find_first_not_of(' ');
    if (begin == std::string_view::npos) return out;
    text.remove_prefix(begin);
    const std::string_view word = text.substr(0, text.find(' '));
    if (!out.empty() && column + 1 + word.size() > width) {
      out += '\n';
      out.append(indent, ' ');
      column = indent;
    } else if (!out.empty()) {
      out += ' ';
      ++column;
    }
    out += word;
    column += word.size();
    text.remove_prefix(word.size());
  }
}

std::string nearest(std::string_view word, const std::vector<std::string>& candidates) {
  std::string best;
  int64_t best_distance = static_cast<int64_t>(word.size()) / 3 + 1;
  for (const std::string& candidate : candidates) {
    const int64_t distance = edit_distance(word, candidate);
    if (distance < best_distance) best = candidate, best_distance = distance;
  }
  return best;
}

}  // namespace hearth
