// SPDX-License-Identifier: Apache-2.0
// What the benchmarks of models and of ops share. The main thread only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "hearth/base/clock.h"
#include "hearth/base/result.h"
#include "hearth/base/thread_pool.h"
#include "hearth/cli/options.h"
#include "hearth/memory/memory.h"

namespace hearth {

// The value below which the share q of them lies, of those that there are. REQUIRES: not empty.
double quantile(std::vector<double> values, double q);

// "1,8,32" and ""; InvalidArgument names the flag, what was found and wanted.
Result<std::vector<int64_t>> parse_list(std::string_view flag, std::string_view text, const Setting<int64_t>& range);
// The words between commas; the same errors.
Result<std::vector<std::string_view>> split_list(std::string_view flag, std::string_view text);

// Ids below `vocab`, the same for the same seed.
std::vector<int32_t> random_tokens(int64_t count, int64_t vocab, uint64_t seed);

// Bytes a second that memory can be read with: on the host `host_bytes` are summed up by all threads, on a GPU a copy
// within its memory is timed, which reads and writes. 0 where there is no room for that.
Result<double> read_speed(const Memory& memory, std::span<const std::byte> host_bytes, ThreadPool& pool,
                          const Clock& clock);

}  // namespace hearth
