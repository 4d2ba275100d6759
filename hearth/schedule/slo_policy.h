// SPDX-License-Identifier: Apache-2.0
// hearth's local policy: the most first tokens on time, in the room that running answers leave.
// docs/design/schedule.md has it in formulas. Stateless.
#pragma once

#include "hearth/schedule/local_policy.h"

namespace hearth {

class SloPolicy final : public LocalPolicy {
 public:
  Turn next(std::span<const LocalModel> models, int64_t now_us) const override;
};

}  // namespace hearth
