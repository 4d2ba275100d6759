// SPDX-License-Identifier: Apache-2.0
#include "hearth/cli/bench_common.h"

#include <algorithm>

#include "hearth/base/random.h"
#include "hearth/kernels/cpu/read_sum.h"

namespace hearth {

double quantile(std::vector<double> values, double q) {
  std::ranges::sort(values);
  return values[static_cast<size_t>(q * static_cast<double>(values.size() - 1) + 0.5)];
}

Result<std::vector<std::string_view>> split_list(std::string_view flag, std::string_view text) {
  std::vector<std::string_view> words;
  while (!text.empty()) {
    const size_t comma = text.find(',');
    words.push_back(text.substr(0, comma));
    if (comma == std::string_view::npos) break;
    text.remove_prefix(comma + 1);
    if (text.empty()) return invalid_argument("{}: ends with a comma; wanted a value behind each", flag);
  }
  return words;
}

Result<std::vector<int64_t>> parse_list(std::string_view flag, std::string_view text, const Setting<int64_t>& range) {
  std::vector<int64_t> values;
  HEARTH_TRY_ASSIGN(const std::vector<std::string_view> words, split_list(flag, text));
  for (const std::string_view word : words) {
    HEARTH_TRY_ASSIGN(const int64_t value, parse_number(word, range).with_context(flag));
    values.push_back(value);
  }
  return values;
}

std::vector<int32_t> random_tokens(int64_t count, int64_t vocab, uint64_t seed) {
  Random random(seed);
  std::vector<int32_t> tokens(static_cast<size_t>(count));
  for (int32_t& token : tokens)
    token = static_cast<int32_t>(std::min<int64_t>(vocab - 1, static_cast<int64_t>(random.uniform() * vocab)));
  return tokens;
}

Result<double> read_speed(const Memory& memory, std::span<const std::byte> host_bytes, ThreadPool& pool,
                          const Clock& clock) {
  constexpr int kRounds = 5;
  HEARTH_TRY_ASSIGN(const std::unique_ptr<Queue> queue, memory.create_queue());
  double bytes = 0;
  std::function<Status()> work;
  Buffer buffer;
  volatile uint64_t sink = 0;
  if (memory.is_host()) {
    bytes = static_cast<double>(host_bytes.size());
    work = [&]() -> Status {
      sink = sink + read_sum({&host_bytes, 1}, pool);
      return {};
    };
  } else {
    constexpr int64_t kBytes = int64_t{512} << 20, kCopies = 8;
    Result<Buffer> both = memory.allocate(2 * kBytes);
    if (!both) return 0.0;
    buffer = *std::move(both);
    bytes = 2.0 * kBytes * kCopies;
    work = [&]() -> Status {
      for (int64_t i = 0; i < kCopies; ++i)
        HEARTH_TRY(queue->copy_within(buffer.data(), buffer.data() + kBytes, kBytes));
      return {};
    };
  }
  HEARTH_TRY(work());  // the first touches pages and wakes threads
  HEARTH_TRY_ASSIGN(const std::vector<double> times_us, queue->time_each(kRounds, work, clock));
  return bytes * 1e6 / std::max(1e-3, quantile(times_us, 0.5));
}

}  // namespace hearth
