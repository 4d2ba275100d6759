// SPDX-License-Identifier: Apache-2.0
// Names from files, as they appear in messages. Stateless.
#pragma once

#include <string>
#include <string_view>

namespace hearth {

// `text` with control characters (C0 but newline and tab, DEL, and C1 in UTF-8) as \xNN, so that a terminal
// shows it and does not obey it.
std::string escape_controls(std::string_view text);

// 'name' in quotes, all control characters as \xNN, cut after 120 bytes: a name out of a file may hold
// anything and be of any length, a message goes to a terminal.
std::string quote_name(std::string_view name);

}  // namespace hearth
