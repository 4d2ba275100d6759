// SPDX-License-Identifier: Apache-2.0
#include "hearth/engine/swap_space.h"

#include <algorithm>

namespace hearth {

Result<SwapSpace> SwapSpace::create(const Memory& memory, Queue& queue, const Buffer& kv, int64_t size_bytes,
                                    const Clock& clock) {
  SwapSpace space;
  HEARTH_TRY_ASSIGN(
      space.memory_,
      memory.allocate_staging(size_bytes).with_context(fmt::format("host memory of {} bytes for KV", size_bytes)));
  const int64_t probe = std::min({kv.size_bytes(), size_bytes, int64_t{16} << 20});
  const std::span host(space.memory_.data(), static_cast<size_t>(probe));
  // The first round touches the pages; of the others the quickest was the least disturbed.
  for (int round = 0; round < 5; ++round) {
    const int64_t begin_ns = clock.now_ns();
    HEARTH_TRY(queue.copy_out(host, kv.data()));
    HEARTH_TRY(queue.copy_in(kv.data(), host));
    HEARTH_TRY(queue.synchronize());
    const double us_per_byte =
        static_cast<double>(clock.now_ns() - begin_ns) * 1e-3 / static_cast<double>(std::max<int64_t>(probe, 1));
    space.us_per_byte_ = round < 2 ? us_per_byte : std::min(space.us_per_byte_, us_per_byte);
  }
  return space;
}

}  // namespace hearth
