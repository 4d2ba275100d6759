// SPDX-License-Identifier: Apache-2.0
// Through two staging buffers: one is filled while the other travels.
#include "hearth/model/weights_move.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace hearth {
namespace {

constexpr int64_t kStagingBytes = int64_t{32} << 20;

Status copy_all(std::span<const std::byte> from, std::byte* to, const Memory& memory) {
  struct Lane {
    Buffer staging;
    std::unique_ptr<Queue> queue;
  };
  std::array<Lane, 2> lanes;
  const int64_t total = static_cast<int64_t>(from.size()), piece = std::min(kStagingBytes, total);
  for (Lane& lane : lanes) {
    HEARTH_TRY_ASSIGN(lane.staging, memory.allocate_staging(piece));
    HEARTH_TRY_ASSIGN(lane.queue, memory.create_queue());
  }
  size_t turn = 0;
  for (int64_t at = 0; at < total; at += piece, turn = 1 - turn) {
    Lane& lane = lanes[turn];
    const auto count = static_cast<size_t>(std::min(piece, total - at));
    HEARTH_TRY(lane.queue->synchronize());
    std::memcpy(lane.staging.data(), from.data() + at, count);
    HEARTH_TRY(lane.queue->copy_in(to + at, {lane.staging.data(), count}));
  }
  for (Lane& lane : lanes) HEARTH_TRY(lane.queue->synchronize());
  return {};
}

// Every view of the weights, once.
template <class Visit>
void for_each_view(ModelWeights& weights, const Visit& visit) {
  const auto visit_linear = [&](Linear& linear) {
    for (LinearWeight& part : linear.parts)
      for (ConstTensorView* view : {&part.codes, &part.scales, &part.zeros, &part.lines, &part.line_scales,
                                    &part.line_index, &part.k_order, &part.act_scale, &part.bias})
        visit(*view);
  };
  visit(weights.embedding), visit(weights.final_norm), visit(weights.inv_freq);
  visit_linear(weights.lm_head);
  for (LayerWeights& layer : weights.layers) {
    DenseFfn& ffn = std::get<DenseFfn>(layer.ffn);
    for (ConstTensorView* view : {&layer.input_norm, &layer.q_norm, &layer.k_norm, &layer.k_channel_scale,
                                  &layer.k_channel_offset, &layer.k_scale, &layer.v_scale, &layer.post_attention_norm})
      visit(*view);
    for (Linear* linear : {&layer.qkv, &layer.o, &ffn.gate_up, &ffn.down}) visit_linear(*linear);
  }
}

}  // namespace

Result<Buffer> move_weights(ModelWeights& weights, const Memory& memory) {
  if (memory.is_host()) return Buffer();
  const std::span<const std::byte> from = std::as_const(weights.memory).bytes();
  HEARTH_TRY_ASSIGN(Buffer moved, memory.allocate(weights.memory.size_bytes()).with_context("weights"));
  HEARTH_TRY(copy_all(from, moved.data(), memory).with_context("weights"));
  for_each_view(weights, [&](ConstTensorView& view) {
    if (!view) return;
    const int64_t at = static_cast<const std::byte*>(view.data) - from.data();
    HEARTH_CHECK(at >= 0 && at + view.size_bytes() <= moved.size_bytes(), "a weight outside of the weights' memory");
    view.data = moved.data() + at;
  });
  weights.memory = HostBuffer();
  return moved;
}

}  // namespace hearth
