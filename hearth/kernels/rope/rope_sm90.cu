// SPDX-License-Identifier: Apache-2.0
// The two rope ops on Hopper. rope_table: a thread per angle; rope_kv_write: a warp per head of a token, which
// holds the head's pairs in registers while it normalises and rotates them; or a thread per 16 channels, where many heads
// are neither normalised nor coded. Heads for a coded KV format then go to shared memory, where the warp transforms and
// encodes them (kv_write.cuh). K's numbers, but for the order of a norm's sum, and so what is stored of them, have the
// bits of a CPU with fused multiply-add.
#include <type_traits>

#include "hearth/kernels/rope/rope.h"
#include "hearth/kernels/sm90/hadamard.cuh"
#include "hearth/kernels/sm90/kv_write.cuh"
#include "hearth/kernels/sm90/pdl.cuh"
#include "hearth/kernels/sm90/step.cuh"
#include "hearth/kernels/sm90/values.cuh"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;
// Pairs of a head that a lane holds: 2 up to a head dim of 128, else 4.
constexpr int kMostLanePairs = 4, kMaxHeadDim = 64 * kMostLanePairs;

// Steps of many tokens of Llama's kind are faster so from 64 on (docs/kernels/rows-sm90.md).
constexpr int kVector = 8;
constexpr int64_t kVectorTokens = 64;

struct RopeTableParams {
  const int32_t* positions;
  const float* inv_freq;
  float* cos_sin;
  int64_t stride;
  int tokens, half;
  float scale;
};

__global__ void __launch_bounds__(kThreads) rope_table_kernel(RopeTableParams p) {
  sm90::pdl_launch_next();
  sm90::pdl_wait();
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t token = index / p.half;
  if (token >= p.tokens) return;
  const int i = static_cast<int>(index % p.half);
  // In double, so that the rounding to f32 is the only one: contexts reach angles of 100,000 and more.
  const float angle = __fmul_rn(static_cast<float>(p.positions[token]), p.inv_freq[i]);
  double sine, cosine;
  sincos(static_cast<double>(angle), &sine, &cosine);
  float* const row = p.cos_sin + token * p.stride;
  row[i] = static_cast<float>(cosine) * p.scale;
  row[p.half + i] = static_cast<float>(sine) * p.scale;
}

template <class T>
struct RopeParams {
  T* qkv;
  const float* cos_sin;
  const void *q_norm, *k_norm;  // f32 or bf16, or null
  int64_t qkv_stride, cos_sin_stride;
  sm90::DeviceStep step;
  sm90::DeviceKv kv;
  int64_t tasks;  // tokens * (heads + 2 kv_heads)
  int heads, kv_heads, head_dim;
  bool q_norm_f32, k_norm_f32;
  float eps;
};

__device__ __forceinline__ float norm_weight(const void* weight, bool f32, int i) {
  return f32 ? static_cast<const float*>(weight)[i] : sm90::widen(static_cast<const __nv_bfloat16*>(weight)[i]);
}

// Encodes a warp's head: channels i and i + half of lane i % 32 are a and b. Not for f32 and bf16.
template <KvFormatId kFormat, int kLanePairs>
__device__ __forceinline__ void store_coded(const sm90::DeviceKv& kv, sm90::HeadPlace place, int kv_head, bool is_v,
                                            int head_dim, const float (&a)[kLanePairs], const float (&b)[kLanePairs]) {
  __shared__ float heads[kWarps][64 * kLanePairs];
  float* const x = heads[threadIdx.x / 32];
  const int lane = threadIdx.x % 32, half = head_dim / 2;
  const float *channel = nullptr, *offset = nullptr;
  if (kFormat == KvFormatId::kInt4Fireq && !is_v) {
    if (kv.channel_scale != nullptr) channel = kv.channel_scale + kv_head * kv.channel_stride;
    if (kv.channel_offset != nullptr) offset = kv.channel_offset + kv_head * kv.channel_offset_stride;
  }
#pragma unroll
  for (int v = 0; v < kLanePairs; ++v) {
    const int i = lane + v * 32;
    if (i >= half) continue;
    const float low = offset ? __fsub_rn(a[v], offset[i]) : a[v];
    const float high = offset ? __fsub_rn(b[v], offset[half + i]) : b[v];
    x[i] = channel ? __fmul_rn(low, channel[i]) : low;
    x[half + i] = channel ? __fmul_rn(high, channel[half + i]) : high;
  }
  __syncwarp();
  if (kFormat == KvFormatId::kInt4Saw && !is_v)
    sm90::hadamard_rotate(x, head_dim, head_dim, lane, 32, [] { __syncwarp(); });
  std::byte* const base = is_v ? kv.value : kv.key;
  sm90::store_kv_head<kFormat>(x, head_dim, (is_v ? kv.v_scale : kv.k_scale)[kv_head], base + place.codes,
                               base + place.steps, lane);
}

// A warp per task; tasks of a token are its Q, K and V heads.
template <class T, KvFormatId kFormat, int kLanePairs>
__global__ void __launch_bounds__(kThreads) rope_kv_write_kernel(RopeParams<T> p) {
  sm90::pdl_launch_next();
  sm90::pdl_wait();
  const int64_t task = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (task >= p.tasks) return;
  const int lane = threadIdx.x % 32, all_heads = p.heads + 2 * p.kv_heads, half = p.head_dim / 2;
  const int token = static_cast<int>(task / all_heads), head = static_cast<int>(task % all_heads);
  T* const from = p.qkv + token * p.qkv_stride + int64_t{head} * p.head_dim;
  const bool is_q = head < p.heads, is_v = head >= p.heads + p.kv_heads;

  // All that the head needs is asked for at once: a warp waits for memory once, not for each in turn.
  T low[kLanePairs], high[kLanePairs];  // channels i and i + half
  float cosine[kLanePairs], sine[kLanePairs];
  const float* const angles = p.cos_sin + token * p.cos_sin_stride;
#pragma unroll
  for (int v = 0; v < kLanePairs; ++v)
    if (const int i = lane + v * 32; i < half) low[v] = from[i], high[v] = from[half + i];
#pragma unroll
  for (int v = 0; v < kLanePairs; ++v)
    if (const int i = lane + v * 32; i < half && !is_v) cosine[v] = angles[i], sine[v] = angles[half + i];
  const int kv_head = head - p.heads - (is_v ? p.kv_heads : 0);
  sm90::HeadPlace place{};
  if (!is_q) place = sm90::find_head(p.step, p.kv, sm90::find_token(p.step, token), kv_head);
  float a[kLanePairs], b[kLanePairs];
#pragma unroll
  for (int v = 0; v < kLanePairs; ++v) {
    const bool is_channel = lane + v * 32 < half;
    a[v] = is_channel ? sm90::widen(low[v]) : 0.0f;
    b[v] = is_channel ? sm90::widen(high[v]) : 0.0f;
  }
  const void* const norm = is_v ? nullptr : is_q ? p.q_norm : p.k_norm;
  if (norm != nullptr) {
    const bool f32 = is_q ? p.q_norm_f32 : p.k_norm_f32;
    float squares = 0;
#pragma unroll
    for (int v = 0; v < kLanePairs; ++v) squares = fmaf(b[v], b[v], fmaf(a[v], a[v], squares));
    const float scale = 1.0f / sqrtf(sm90::warp_sum(squares) / static_cast<float>(p.head_dim) + p.eps);
#pragma unroll
    for (int v = 0; v < kLanePairs; ++v) {
      const int i = lane + v * 32;
      if (i >= half) continue;
      a[v] = a[v] * scale * norm_weight(norm, f32, i);
      b[v] = b[v] * scale * norm_weight(norm, f32, half + i);
    }
  }
  if (!is_v) {
#pragma unroll
    for (int v = 0; v < kLanePairs; ++v) {
      if (lane + v * 32 >= half) continue;
      const float x = a[v], y = b[v];
      a[v] = fmaf(-y, sine[v], __fmul_rn(x, cosine[v]));
      b[v] = fmaf(x, sine[v], __fmul_rn(y, cosine[v]));
    }
  }
  const auto store = [&](auto* to) {
    using To = std::remove_pointer_t<decltype(to)>;
#pragma unroll
    for (int v = 0; v < kLanePairs; ++v) {
      const int i = lane + v * 32;
      if (i >= half) continue;
      to[i] = sm90::narrow<To>(a[v]);
      to[half + i] = sm90::narrow<To>(b[v]);
    }
  };
  if (is_q) return store(from);
  if constexpr (kFormat == KvFormatId::kF32 || kFormat == KvFormatId::kBf16) {
    using Kv = std::conditional_t<kFormat == KvFormatId::kF32, float, __nv_bfloat16>;
    store(reinterpret_cast<Kv*>((is_v ? p.kv.value : p.kv.key) + place.codes));
  } else {
    store_coded<kFormat>(p.kv, place, kv_head, is_v, p.head_dim, a, b);
  }
}

// Without norms, bf16 stored as bf16: a thread takes kVector channels i and as many i + half of a head. The same bits.
__global__ void __launch_bounds__(kThreads) rope_kv_write_vectors_kernel(RopeParams<__nv_bfloat16> p) {
  using Numbers = sm90::Pack<__nv_bfloat16, kVector>;
  using Angles = sm90::Pack<float, kVector>;
  sm90::pdl_launch_next();
  sm90::pdl_wait();
  const unsigned half = p.head_dim / 2, vectors = half / kVector, index = blockIdx.x * kThreads + threadIdx.x;
  const unsigned task = index / vectors, all_heads = p.heads + 2 * p.kv_heads;
  if (task >= p.tasks) return;
  const int token = static_cast<int>(task / all_heads), head = static_cast<int>(task % all_heads);
  const int i = static_cast<int>(index % vectors) * kVector;
  const bool is_q = head < p.heads, is_v = head >= p.heads + p.kv_heads;

  __nv_bfloat16* const from = p.qkv + token * p.qkv_stride + int64_t{head} * p.head_dim + i;
  Numbers low = *reinterpret_cast<const Numbers*>(from), high = *reinterpret_cast<const Numbers*>(from + half);
  Angles cosine, sine;
  if (!is_v) {
    const float* const angles = p.cos_sin + token * p.cos_sin_stride + i;
    cosine = *reinterpret_cast<const Angles*>(angles), sine = *reinterpret_cast<const Angles*>(angles + half);
  }
  __nv_bfloat16* to = from;
  if (!is_q) {
    const int kv_head = head - p.heads - (is_v ? p.kv_heads : 0);
    const sm90::HeadPlace place = sm90::find_head(p.step, p.kv, sm90::find_token(p.step, token), kv_head);
    to = reinterpret_cast<__nv_bfloat16*>((is_v ? p.kv.value : p.kv.key) + place.codes) + i;
  }
  if (!is_v) {
#pragma unroll
    for (int c = 0; c < kVector; ++c) {
      const float x = sm90::widen(low.at[c]), y = sm90::widen(high.at[c]);
      low.at[c] = sm90::narrow<__nv_bfloat16>(fmaf(-y, sine.at[c], __fmul_rn(x, cosine.at[c])));
      high.at[c] = sm90::narrow<__nv_bfloat16>(fmaf(x, sine.at[c], __fmul_rn(y, cosine.at[c])));
    }
  }
  *reinterpret_cast<Numbers*>(to) = low, *reinterpret_cast<Numbers*>(to + half) = high;
}

// Whether rope_kv_write_vectors_kernel takes it, and is the faster one.
bool in_vectors(const RopeKvWriteArgs& args, const RopeParams<__nv_bfloat16>& p) {
  const auto lie_in_vectors = [](const ConstTensorView& rows) {
    return reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 && dtype_bytes(rows.dtype, rows.row_stride) % 16 == 0;
  };
  const KvLayout& layout = args.kv.layout;
  const bool kv_in_vectors =
      reinterpret_cast<uintptr_t>(args.kv.base) % 16 == 0 &&
      ((layout.token_stride_bytes | layout.head_stride_bytes | layout.v_offset_bytes | layout.layer_stride_bytes) %
           16 ==
       0);
  return kv_in_vectors && args.qkv.rows() >= kVectorTokens && p.tasks <= INT32_MAX / kMaxHeadDim &&
         p.q_norm == nullptr && p.k_norm == nullptr && p.head_dim % (2 * kVector) == 0 && lie_in_vectors(args.qkv) &&
         lie_in_vectors(args.cos_sin);
}

template <class T, KvFormatId kFormat>
Status start(const RopeKvWriteArgs& args, const KvScales& scales, ExecContext& exec) {
  HEARTH_TRY_ASSIGN(const sm90::DeviceStep step, sm90::device_step("rope_kv_write", *args.batch, exec));
  const RopeParams<T> params{.qkv = static_cast<T*>(args.qkv.data),
                             .cos_sin = static_cast<const float*>(args.cos_sin.data),
                             .q_norm = args.q_norm.data,
                             .k_norm = args.k_norm.data,
                             .qkv_stride = args.qkv.row_stride,
                             .cos_sin_stride = args.cos_sin.row_stride,
                             .step = step,
                             .kv = sm90::device_kv(args.kv, args.layer, scales),
                             .tasks = args.qkv.rows() * (args.heads + 2 * args.kv_heads),
                             .heads = static_cast<int>(args.heads),
                             .kv_heads = static_cast<int>(args.kv_heads),
                             .head_dim = static_cast<int>(args.head_dim),
                             .q_norm_f32 = args.q_norm.dtype == DType::kF32,
                             .k_norm_f32 = args.k_norm.dtype == DType::kF32,
                             .eps = args.norm_eps};
  if constexpr (std::is_same_v<T, __nv_bfloat16> && kFormat == KvFormatId::kBf16)
    if (in_vectors(args, params)) {
      const int64_t threads = params.tasks * (args.head_dim / 2 / kVector);
      Launch how(dim3(static_cast<unsigned>((threads + kThreads - 1) / kThreads)), dim3(kThreads), exec.stream);
      how.pdl = true;
      return launch(how, rope_kv_write_vectors_kernel, params);
    }
  Launch how(dim3(static_cast<unsigned>((params.tasks + kWarps - 1) / kWarps)), dim3(kThreads), exec.stream);
  how.pdl = true;
  if (args.head_dim <= 128) return launch(how, rope_kv_write_kernel<T, kFormat, 2>, params);
  return launch(how, rope_kv_write_kernel<T, kFormat, kMostLanePairs>, params);
}

template <KvFormatId kFormat>
Status start_typed(const RopeKvWriteArgs& args, const KvScales& scales, ExecContext& exec) {
  return args.qkv.dtype == DType::kF32 ? start<float, kFormat>(args, scales, exec)
                                       : start<__nv_bfloat16, kFormat>(args, scales, exec);
}

}  // namespace

Status rope_table_sm90(const RopeTableArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate(args));
  if (args.positions.empty()) return {};
  HEARTH_TRY_ASSIGN(const int32_t* positions, on_device("rope_table", "positions", args.positions, exec));
  const RopeTableParams params{.positions = positions,
                               .inv_freq = static_cast<const float*>(args.inv_freq.data),
                               .cos_sin = static_cast<float*>(args.cos_sin.data),
                               .stride = args.cos_sin.row_stride,
                               .tokens = static_cast<int>(args.positions.size()),
                               .half = static_cast<int>(args.inv_freq.cols()),
                               .scale = args.scale};
  const int64_t angles = static_cast<int64_t>(params.tokens) * params.half;
  Launch how(dim3(static_cast<unsigned>((angles + kThreads - 1) / kThreads)), dim3(kThreads), exec.stream);
  how.pdl = true;
  return launch(how, rope_table_kernel, params);
}

Status rope_kv_write_sm90(const RopeKvWriteArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate(args));
  if (args.qkv.rows() == 0) return {};
  if (args.head_dim > kMaxHeadDim)
    return unsupported("rope_kv_write: head dim is {}, the GPU's kernel has at most {}", args.head_dim, kMaxHeadDim);
  HEARTH_TRY_ASSIGN(const KvScales scales,
                    check_kv_scales("rope_kv_write", args.kv.layout,
                                    {args.k_channel_scale, args.k_scale, args.v_scale, args.k_channel_offset}));
  switch (args.kv.layout.format) {
    case KvFormatId::kF32: return start_typed<KvFormatId::kF32>(args, scales, exec);
    case KvFormatId::kBf16: return start_typed<KvFormatId::kBf16>(args, scales, exec);
    case KvFormatId::kFp8: return start_typed<KvFormatId::kFp8>(args, scales, exec);
    case KvFormatId::kInt4: return start_typed<KvFormatId::kInt4>(args, scales, exec);
    case KvFormatId::kInt4Fireq: return start_typed<KvFormatId::kInt4Fireq>(args, scales, exec);
    case KvFormatId::kInt4Saw: return start_typed<KvFormatId::kInt4Saw>(args, scales, exec);
  }
  HEARTH_CHECK(false, "KV format {}", static_cast<int>(args.kv.layout.format));
}

}  // namespace hearth
