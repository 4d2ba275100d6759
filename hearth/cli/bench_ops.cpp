// SPDX-License-Identifier: Apache-2.0
#include "hearth/cli/bench_ops.h"

#include <algorithm>
#include <cstring>

#include "hearth/base/check.h"
#include "hearth/base/random.h"
#include "hearth/cli/bench_common.h"

namespace hearth {
namespace {

constexpr int64_t kUnknownCacheBytes = int64_t{64} << 20;
constexpr int64_t kPieceBytes = int64_t{1} << 20;

// A recording is long enough that what starts it does not count, and short enough that many rounds are done soon.
constexpr double kShortestUs = 300, kLongestUs = 20'000;
constexpr int64_t kWarmRounds = 2, kFewestRounds = 5;
// Of one case, where calls are slow (the CPU).
constexpr double kMostUs = 2e6;

void put(std::vector<std::byte>& to, DType dtype, int64_t i, float value) {
  const auto copy = [&](auto typed) {
    std::memcpy(to.data() + i * static_cast<int64_t>(sizeof(typed)), &typed, sizeof(typed));
  };
  if (dtype == DType::kBf16) return copy(bf16::from_float(value));
  if (dtype == DType::kF16) return copy(f16::from_float(value));
  if (dtype == DType::kE4m3) return copy(e4m3::from_float(value));
  copy(value);
}

}  // namespace

OpSizes op_sizes(std::string name, const ModelConfig& c) {
  return {std::move(name), c.hidden_size, c.heads, c.kv_heads, c.head_dim, c.intermediate_size, c.vocab_size};
}

std::vector<OpSizes> usual_op_sizes() {
  return {{"Llama-3-8B", 4096, 32, 8, 128, 14336, 128256}, {"Llama-2-7B", 4096, 32, 32, 128, 11008, 32000}};
}

Result<OpRig> OpRig::create(const OpTable& ops, ThreadPool& pool, const Clock& clock, DType activation,
                            int64_t cache_bytes) {
  OpRig rig;
  rig.ops_ = &ops;
  rig.pool_ = &pool;
  rig.clock_ = &clock;
  rig.activation_ = activation;
  if (ops.prepare) HEARTH_TRY(ops.prepare());
  rig.cache_bytes_ = cache_bytes > 0 ? cache_bytes : ops.memory().cache_bytes();
  if (rig.cache_bytes_ <= 0) rig.cache_bytes_ = kUnknownCacheBytes;
  Random random(7);
  rig.normals_.resize(static_cast<size_t>(kPieceBytes / 4));
  for (float& value : rig.normals_) value = random.normal();
  HEARTH_TRY_ASSIGN(rig.queue_, ops.memory().create_queue());
  HEARTH_TRY_ASSIGN(rig.host_queue_, host_memory().create_queue());
  return rig;
}

int64_t OpRig::sets_for(int64_t set_bytes, int64_t most) const {
  return std::clamp<int64_t>((3 * cache_bytes_ + set_bytes - 1) / set_bytes, 1, most);
}

ExecContext OpRig::exec(const Buffer& workspace) const {
  return {.pool = pool_,
          .stream = queue_->stream(),
          .workspace = {workspace.data(), static_cast<size_t>(workspace.size_bytes())},
          .staged = {}};
}

Result<Buffer> OpRig::numbers(DType dtype, int64_t count, float width) const {
  const int64_t total = dtype_bytes(dtype, count), piece = std::min(total, kPieceBytes);
  std::vector<std::byte> host(static_cast<size_t>(piece));
  for (int64_t i = 0; i < piece * 8 / dtype_bits(dtype); ++i)
    put(host, dtype, i, normals_[static_cast<size_t>(i) % normals_.size()] * width);
  HEARTH_TRY_ASSIGN(Buffer buffer, memory().allocate(total));
  HEARTH_TRY(queue_->copy_in(buffer.data(), host));
  HEARTH_TRY(queue_->synchronize());  // for `host`
  HEARTH_TRY(repeat(buffer.data(), piece, total));
  return buffer;
}

Status OpRig::repeat(std::byte* at, int64_t piece_bytes, int64_t total_bytes) const {
  for (int64_t done = piece_bytes; done < total_bytes; done *= 2)
    HEARTH_TRY(queue_->copy_within(at + done, at, std::min(done, total_bytes - done)));
  return queue_->synchronize();
}

Result<double> OpRig::bytes_per_s() const {
  Buffer buffer;
  if (memory().is_host()) {
    HEARTH_TRY_ASSIGN(buffer, numbers(DType::kF32, sets_for(1, int64_t{1} << 30) / 4, 1));
  }
  return read_speed(memory(), {buffer.data(), static_cast<size_t>(buffer.size_bytes())}, *pool_, *clock_);
}

nlohmann::json op_line(const OpCase& one, double bytes_per_s, int64_t calls, bool recorded) {
  nlohmann::json line = one.fields;
  line["bytes"] = one.bytes;
  if (bytes_per_s > 0) line["floor_us"] = one.bytes / bytes_per_s * 1e6;
  if (one.flops > 0) line["flops"] = one.flops;
  line["calls"] = calls, line["graph"] = recorded;
  line["rotated_bytes"] = one.sets * one.set_bytes;
  return line;
}

std::function<Status()> OpReplay::body() const {
  if (!recording) return round;
  return [kept = recording.get()] { return kept->run(); };
}

Result<OpReplay> OpRig::prepare(const OpCase& one) const {
  OpReplay replay;
  replay.queue = one.on_host ? host_queue_.get() : queue_.get();
  const auto call = [&one, next = std::make_shared<int64_t>(0)] { return one.run((*next)++ % one.sets); };
  // The first call loads and chooses; the second says how many make a round.
  HEARTH_TRY_ASSIGN(const std::vector<double> first_us, replay.queue->time_each(2, call, *clock_));
  const double estimate = replay.estimate_us = std::max(0.1, first_us.back());
  const auto at_most = std::max<int64_t>(1, static_cast<int64_t>(kLongestUs / estimate));
  const auto at_least = static_cast<int64_t>(kShortestUs / estimate) + 1;
  replay.calls = std::min(at_most, (at_least + one.sets - 1) / one.sets * one.sets);
  replay.round = [call, calls = replay.calls]() -> Status {
    for (int64_t i = 0; i < calls; ++i) HEARTH_TRY(call());
    return {};
  };
  Result<std::unique_ptr<Recording>> recording = replay.queue->record(replay.round);
  if (recording) {
    replay.recording = *std::move(recording);
  } else if (recording.error().code != ErrorCode::kUnsupported) {
    return std::move(recording).error();
  }
  return replay;
}

Result<std::vector<double>> OpRig::replay(const OpReplay& replay, int64_t count) const {
  HEARTH_TRY_ASSIGN(std::vector<double> us, replay.queue->time_each(count, replay.body(), *clock_));
  for (double& value : us) value /= static_cast<double>(replay.calls);
  return us;
}

Result<OpTimes> OpRig::time(const OpCase& one, int64_t rounds) const {
  HEARTH_TRY_ASSIGN(const OpReplay prepared, prepare(one));
  OpTimes times;
  times.calls = prepared.calls;
  times.recorded = prepared.recording != nullptr;
  times.rounds = rounds;
  if (!times.recorded) {
    const double round_us = prepared.estimate_us * static_cast<double>(times.calls);
    times.rounds =
        std::clamp<int64_t>(static_cast<int64_t>(kMostUs / round_us), std::min(rounds, kFewestRounds), rounds);
  }
  HEARTH_TRY_ASSIGN(std::vector<double> us, replay(prepared, kWarmRounds + times.rounds));
  us.erase(us.begin(), us.begin() + kWarmRounds);
  times.us = quantile(us, 0.5), times.us_p10 = quantile(us, 0.1), times.us_p90 = quantile(us, 0.9);
  return times;
}

}  // namespace hearth
