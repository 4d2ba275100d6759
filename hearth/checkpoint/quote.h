// SPDX-License-Identifier: Apache-2.0
// Names from files, as they appear in messages. Stateless.
#pragma once

#include <string>
#include <string_view>

namespace hearth {

// 'name' in quotes, control characters as \xNN, cut after 120 bytes: a name out of a file may hold
// anything and be of any length, a message goes to a terminal.
std::string quote_name(std::string_view name);

}  // namespace hearth
