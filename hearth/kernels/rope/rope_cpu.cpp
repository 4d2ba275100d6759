// SPDX-License-Identifier: Apache-2.0
// The two rope ops for the CPU. The table is plain C++: a double cosine per pair and token, once per step.
// The write is Highway: per head one pass for the norm's sum where there is one, one for the rotation. Formats other
// than f32 and bf16 take a head in f32 from the stack and are encoded by kv_codec.h, which is no part of the hot loop.
// Threads take whole tokens; a token's heads are computed one by one, each from its own channels alone.
#include "hearth/kernels/rope/rope.h"

#include <cmath>

#include "hearth/kernels/cpu/parallel.h"
#include "hearth/kernels/cpu/targets.h"
#include "hearth/kernels/validate.h"
#include "hearth/tensor/hadamard.h"
#include "hearth/tensor/kv_codec.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "hearth/kernels/rope/rope_cpu.cpp"
#include <hwy/foreach_target.h>  // NOLINT: compiles this file once per instruction set
#include <hwy/highway.h>

#include "hearth/kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace hearth::HWY_NAMESPACE {

// 1 / sqrt(mean(x^2) + eps) over a head.
template <class T>
float head_scale(const T* head, int64_t head_dim, float eps) {
  const FloatTag d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  FloatVec sum = hn::Zero(d);
  int64_t i = 0;
  for (; i + lanes <= head_dim; i += lanes) {
    const FloatVec v = load_f32(d, head + i);
    sum = hn::MulAdd(v, v, sum);
  }
  float squares = hn::GetLane(hn::SumOfLanes(d, sum));
  for (; i < head_dim; ++i) squares += to_float(head[i]) * to_float(head[i]);
  return 1.0f / std::sqrt(squares / static_cast<float>(head_dim) + eps);
}

// to = rotate(from * scale * weight); `to` may be `from`. W is the norm's weight type, void for none.
template <class T, class Out, class W>
void rotate_head(const T* from, Out* to, int64_t half, [[maybe_unused]] float scale, [[maybe_unused]] const W* weight,
                 const float* cos_sin) {
  for_channels(half, [&](auto d, int64_t i) HWY_ATTR {
    auto a = load_f32(d, from + i), b = load_f32(d, from + half + i);
    if constexpr (!std::is_void_v<W>) {
      const auto s = hn::Set(d, scale);
      a = hn::Mul(hn::Mul(a, s), load_f32(d, weight + i));
      b = hn::Mul(hn::Mul(b, s), load_f32(d, weight + half + i));
    }
    const auto cos = hn::LoadU(d, cos_sin + i), sin = hn::LoadU(d, cos_sin + half + i);
    store_f32(d, hn::NegMulAdd(b, sin, hn::Mul(a, cos)), to + i);
    store_f32(d, hn::MulAdd(a, sin, hn::Mul(b, cos)), to + half + i);
  });
}

template <class T, class Out>
void norm_rotate_head(const T* from, Out* to, int64_t head_dim, const ConstTensorView& norm, float eps,
                      const float* cos_sin) {
  const int64_t half = head_dim / 2;
  if (!norm) return rotate_head(from, to, half, 1.0f, static_cast<const void*>(nullptr), cos_sin);
  const float scale = head_scale(from, head_dim, eps);
  norm.dtype == DType::kF32 ? rotate_head(from, to, half, scale, norm.row<float>(0), cos_sin)
                            : rotate_head(from, to, half, scale, norm.row<bf16>(0), cos_sin);
}

// Stands for the type of a cache that kv_codec.h writes.
struct Coded {};

// Key and value of kv head h, from their channels in qkv to the cache.
template <class T>
void store_coded(const RopeKvWriteArgs& args, const KvScales& scales, int64_t block_offset, int64_t slot, int64_t h,
                 const T* k, const T* v, const float* cos_sin) {
  const KvLayout& layout = args.kv.layout;
  const int64_t head_dim = args.head_dim;
  const int64_t codes = slot * layout.token_stride_bytes + h * layout.head_stride_bytes;
  const int64_t steps =
      layout.scale_offset_bytes + slot * layout.scale_token_stride_bytes + h * layout.scale_head_stride_bytes;
  float head[KvLayout::kMaxCodedHeadDim];
  const std::span<float> x(head, static_cast<size_t>(head_dim));
  norm_rotate_head(k, head, head_dim, args.k_norm, args.norm_eps, cos_sin);
  if (const float* offset = scales.offset_row(h))
    for (int64_t i = 0; i < head_dim; ++i) head[i] -= offset[i];
  if (const float* channel = scales.channel_row(h))
    for (int64_t i = 0; i < head_dim; ++i) head[i] *= channel[i];
  if (layout.query_transform == QueryTransform::kHadamard) hadamard_rotate(x);
  std::byte* key = args.kv.key(block_offset, args.layer);
  store_kv_head(layout.format, x, scales.key_scale(h), key + codes, key + steps);
  for_channels(head_dim, [&](auto d, int64_t i) HWY_ATTR { hn::StoreU(load_f32(d, v + i), d, head + i); });
  std::byte* value = args.kv.value(block_offset, args.layer);
  store_kv_head(layout.format, x, scales.value_scale(h), value + codes, value + steps);
}

template <class T, class Kv>
void rope_kv_write_token(const RopeKvWriteArgs& args, const KvScales& scales, int64_t token, int64_t block_offset,
                         int64_t slot) {
  const KvLayout& layout = args.kv.layout;
  const int64_t head_dim = args.head_dim;
  T* q = args.qkv.row<T>(token);
  const T* k = q + args.heads * head_dim;
  const T* v = k + args.kv_heads * head_dim;
  const float* cos_sin = args.cos_sin.row<float>(token);
  for (int64_t h = 0; h < args.heads; ++h)
    norm_rotate_head(q + h * head_dim, q + h * head_dim, head_dim, args.q_norm, args.norm_eps, cos_sin);
  for (int64_t h = 0; h < args.kv_heads; ++h) {
    if constexpr (std::is_same_v<Kv, Coded>) {
      store_coded(args, scales, block_offset, slot, h, k + h * head_dim, v + h * head_dim, cos_sin);
      continue;
    } else {
      const int64_t place = slot * layout.token_stride_bytes + h * layout.head_stride_bytes;
      Kv* key = static_cast<Kv*>(static_cast<void*>(args.kv.key(block_offset, args.layer) + place));
      Kv* value = static_cast<Kv*>(static_cast<void*>(args.kv.value(block_offset, args.layer) + place));
      norm_rotate_head(k + h * head_dim, key, head_dim, args.k_norm, args.norm_eps, cos_sin);
      const T* from = v + h * head_dim;
      for_channels(head_dim, [&](auto d, int64_t i) HWY_ATTR { store_f32(d, load_f32(d, from + i), value + i); });
    }
  }
}

// Tokens [begin, end) of the step.
template <class T, class Kv>
void rope_kv_write_tokens(const RopeKvWriteArgs& args, const KvScales& scales, int64_t begin, int64_t end) {
  const StepBatch& batch = *args.batch;
  const int64_t block_tokens = args.kv.layout.block_tokens;
  int64_t s = 0;
  for (int64_t token = begin; token < end; ++token) {
    while (batch.query_start[s + 1] <= token) ++s;
    const int64_t position = batch.context_len[s] - (batch.query_start[s + 1] - token);
    rope_kv_write_token<T, Kv>(args, scales, token, batch.blocks(s)[position / block_tokens], position % block_tokens);
  }
}

template <class T>
void rope_kv_write_of(const RopeKvWriteArgs& args, const KvScales& scales, int64_t begin, int64_t end) {
  switch (args.kv.layout.format) {
    case KvFormatId::kF32: return rope_kv_write_tokens<T, float>(args, scales, begin, end);
    case KvFormatId::kBf16: return rope_kv_write_tokens<T, bf16>(args, scales, begin, end);
    default: return rope_kv_write_tokens<T, Coded>(args, scales, begin, end);
  }
}

void rope_kv_write_range(const RopeKvWriteArgs& args, const KvScales& scales, int64_t begin, int64_t end) {
  args.qkv.dtype == DType::kF32 ? rope_kv_write_of<float>(args, scales, begin, end)
                                : rope_kv_write_of<bf16>(args, scales, begin, end);
}

}  // namespace hearth::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace hearth {

HWY_EXPORT(rope_kv_write_range);

Status rope_table_cpu(const RopeTableArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate(args));
  const int64_t half = args.inv_freq.cols();
  const float* inv_freq = args.inv_freq.row<float>(0);
  // A sine and a cosine in double take about 40 ns, as much as reading a hundred floats.
  cpu::parallel_items(exec, static_cast<int64_t>(args.positions.size()), 100 * half, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* row = args.cos_sin.row<float>(t);
      for (int64_t i = 0; i < half; ++i) {
        const float angle = static_cast<float>(args.positions[t]) * inv_freq[i];
        row[i] = static_cast<float>(std::cos(double{angle})) * args.scale;
        row[half + i] = static_cast<float>(std::sin(double{angle})) * args.scale;
      }
    }
  });
  return {};
}

Status rope_kv_write_cpu(const RopeKvWriteArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate(args));
  HEARTH_TRY_ASSIGN(const KvScales scales,
                    check_kv_scales("rope_kv_write", args.kv.layout,
                                    {args.k_channel_scale, args.k_scale, args.v_scale, args.k_channel_offset}));
  cpu::parallel_items(exec, args.qkv.rows(), args.qkv.cols(), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(rope_kv_write_range)(args, scales, begin, end);
  });
  return {};
}

}  // namespace hearth
#endif  // HWY_ONCE
