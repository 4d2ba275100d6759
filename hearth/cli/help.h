// SPDX-License-Identifier: Apache-2.0
// Help texts in columns that fit a terminal, and what the user may have meant. Stateless.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace hearth {

std::shared_ptr<CLI::FormatterBase> help_formatter();

// Words of `text` in lines of at most `width` columns, all but the first indented by `indent`.
std::string wrap(std::string_view text, size_t indent, size_t width);

// The candidate nearest to `word`, or empty where none is near: at most a third of its letters differ.
std::string nearest(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace hearth
