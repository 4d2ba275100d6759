// SPDX-License-Identifier: Apache-2.0
#include "hearth/engine/host_copy.h"

#include <algorithm>

namespace hearth {

Result<HostCopy> HostCopy::take(const Memory& memory, std::span<const std::byte> from) {
  HostCopy copy(memory);
  // Nothing throws once copies are under way.
  copy.pieces_.reserve(from.size() / kPieceBytes + 1);
  HEARTH_TRY_ASSIGN(const std::unique_ptr<Queue> queue, memory.create_queue());
  const auto take_all = [&]() -> Status {
    for (std::span<const std::byte> rest = from; !rest.empty();) {
      const std::span<const std::byte> piece = rest.first(std::min<size_t>(kPieceBytes, rest.size()));
      HEARTH_TRY_ASSIGN(Buffer pinned, memory.allocate_staging(std::ssize(piece)));
      HEARTH_TRY(queue->copy_out({pinned.data(), piece.size()}, piece.data()));
      copy.size_bytes_ += pinned.size_bytes();
      copy.pieces_.push_back(std::move(pinned));
      rest = rest.subspan(piece.size());
      let_others_start_work();
    }
    return {};
  };
  const Status taken = take_all(), copied = queue->synchronize();  // in any case: copies write to the pieces
  HEARTH_TRY(taken);
  HEARTH_TRY(copied);
  return copy;
}

HostCopy::~HostCopy() {
  for (; !pieces_.empty(); let_others_start_work()) pieces_.pop_back();
}

Status HostCopy::put_back(std::byte* to) const {
  HEARTH_TRY_ASSIGN(const std::unique_ptr<Queue> queue, memory_->create_queue());
  for (const Buffer& piece : pieces_) {
    HEARTH_TRY(queue->copy_in(to, {piece.data(), static_cast<size_t>(piece.size_bytes())}));
    // One at a time: what others' steps copy in waits behind all that the device was given.
    HEARTH_TRY(queue->synchronize());
    to += piece.size_bytes();
  }
  return {};
}

}  // namespace hearth
