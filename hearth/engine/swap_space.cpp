// SPDX-License-Identifier: Apache-2.0
#include "hearth/engine/swap_space.h"

#include <algorithm>
#include <utility>

namespace hearth {

Result<SwapSpace> SwapSpace::create(const Memory& memory, Queue& queue, const Buffer& kv, int64_t size_bytes,
                                    const Clock& clock) {
  HEARTH_TRY_ASSIGN(
      Buffer bytes,
      memory.allocate_staging(size_bytes).with_context(fmt::format("host memory of {} bytes for KV", size_bytes)));
  const int64_t probe = std::min({kv.size_bytes(), size_bytes, int64_t{16} << 20});
  const std::span host(bytes.data(), static_cast<size_t>(probe));
  double us_per_byte = 0;
  // The first round touches the pages; of the others the quickest was the least disturbed.
  for (int round = 0; round < 5; ++round) {
    const int64_t begin_ns = clock.now_ns();
    HEARTH_TRY(queue.copy_out(host, kv.data()));
    HEARTH_TRY(queue.copy_in(kv.data(), host));
    HEARTH_TRY(queue.synchronize());
    const double round_us_per_byte =
        static_cast<double>(clock.now_ns() - begin_ns) * 1e-3 / static_cast<double>(std::max<int64_t>(probe, 1));
    us_per_byte = round < 2 ? round_us_per_byte : std::min(us_per_byte, round_us_per_byte);
  }
  return SwapSpace(std::move(bytes), us_per_byte);
}

}  // namespace hearth
