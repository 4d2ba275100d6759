// SPDX-License-Identifier: Apache-2.0
// FineServe's adaptive batching (arXiv 2509.06261) as its authors released it, to compare with: it chooses which waiting
// requests are sent to a model's engine, and the engine serves in the order of their coming. Stateless.
#pragma once

#include "hearth/schedule/local_policy.h"

namespace hearth {

// Models take turns; the original runs them side by side and leaves turns to the GPU.
class FineServePolicy final : public LocalPolicy {
 public:
  Turn next(std::span<const LocalModel> models, int64_t now_us) const override;
};

}  // namespace hearth
