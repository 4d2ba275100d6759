// SPDX-License-Identifier: Apache-2.0
#include "hearth/model/weights_sink.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "hearth/base/check.h"

namespace hearth {

Result<WeightSink> WeightSink::create(const Memory& memory, int64_t size_bytes, int64_t piece_bytes) {
  WeightSink sink;
  if (memory.is_host()) {
    HEARTH_TRY_ASSIGN(sink.buffer_, memory.allocate(size_bytes).with_context("weights"));
    return sink;
  }
  // So that they can leave the device while their model sleeps.
  HEARTH_TRY_ASSIGN(
      sink.buffer_,
      memory.allocate_resizable(std::min(size_bytes, kResizeStepBytes), size_bytes).with_context("weights"));
  HEARTH_TRY(resize_in_steps(sink.buffer_, size_bytes).with_context("weights"));
  for (Lane& lane : sink.lanes_) {
    let_others_start_work();
    HEARTH_TRY_ASSIGN(lane.staging, memory.allocate_staging(std::min(piece_bytes, size_bytes)).with_context("weights"));
    HEARTH_TRY_ASSIGN(lane.queue, memory.create_queue());
  }
  return sink;
}

int64_t WeightSink::piece_bytes() const {
  return in_place() ? std::numeric_limits<int64_t>::max() : lanes_[0].staging.size_bytes();
}

Result<std::span<std::byte>> WeightSink::open(int64_t offset, int64_t size_bytes) {
  HEARTH_CHECK(open_.empty() && size_bytes <= piece_bytes() && offset + size_bytes <= buffer_.size_bytes(),
               "weights: {} bytes at {} of {}", size_bytes, offset, buffer_.size_bytes());
  offset_ = offset;
  Lane& lane = lanes_[turn_];
  std::byte* at = address(offset);
  if (!in_place()) {
    HEARTH_TRY(lane.queue->synchronize());
    at = lane.staging.data();
  }
  open_ = {at, static_cast<size_t>(size_bytes)};
  return open_;
}

Status WeightSink::close() {
  const std::span<std::byte> piece = std::exchange(open_, {});
  if (in_place() || piece.empty()) return {};
  Lane& lane = lanes_[turn_];
  turn_ = 1 - turn_;
  return lane.queue->copy_in(address(offset_), piece);
}

Status WeightSink::put(int64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const auto count = static_cast<size_t>(std::min(piece_bytes(), std::ssize(bytes)));
    HEARTH_TRY_ASSIGN(const std::span<std::byte> piece, open(offset, static_cast<int64_t>(count)));
    std::memcpy(piece.data(), bytes.data(), count);
    HEARTH_TRY(close());
    bytes = bytes.subspan(count);
    offset += static_cast<int64_t>(count);
  }
  return {};
}

Result<Buffer> WeightSink::finish() {
  for (Lane& lane : lanes_)
    if (lane.queue) HEARTH_TRY(lane.queue->synchronize().with_context("weights"));
  return std::move(buffer_);
}

}  // namespace hearth
