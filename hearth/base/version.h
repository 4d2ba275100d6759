// SPDX-License-Identifier: Apache-2.0
// What this build is: for `hearth version` and for the results that a run writes down. Constant after the
// build; any thread.
#pragma once

#include <string_view>

namespace hearth {

struct BuildInfo {
  std::string_view version;   // of the project, "0.1.0"
  std::string_view commit;    // 12 digits, "-dirty" where tracked files differed; "unknown" without git
  std::string_view compiler;  // "GNU 12.2.0"
  std::string_view build;     // "Release", with the sanitizers where there are any
};

const BuildInfo& build_info();

}  // namespace hearth
