// SPDX-License-Identifier: Apache-2.0
// The two rope ops on Hopper. rope_table: a thread per angle; rope_kv_write: a warp per head of a token, which
// holds the head's pairs in registers while it normalises and rotates them. KV in f32 and bf16.
#include <type_traits>

#include "hearth/kernels/rope/rope.h"
#include "hearth/kernels/sm90/pdl.cuh"
#include "hearth/kernels/sm90/step.cuh"
#include "hearth/kernels/sm90/values.cuh"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int kLanePairs = 4;  // pairs of a head that a lane holds: head dims to 256

struct RopeTableParams {
  const int32_t* positions;
  const float* inv_freq;
  float* cos_sin;
  int64_t stride;
  int tokens, half;
  float scale;
};

__global__ void __launch_bounds__(kThreads) rope_table_kernel(RopeTableParams p) {
  sm90::pdl_wait();
  sm90::pdl_launch_next();
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

template <class T, class Kv>
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

// A warp per task; tasks of a token are its Q, K and V heads.
template <class T, class Kv>
__global__ void __launch_bounds__(kThreads) rope_kv_write_kernel(RopeParams<T, Kv> p) {
  sm90::pdl_wait();
  sm90::pdl_launch_next();
  const int64_t task = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (task >= p.tasks) return;
  const int lane = threadIdx.x % 32, all_heads = p.heads + 2 * p.kv_heads, half = p.head_dim / 2;
  const int token = static_cast<int>(task / all_heads), head = static_cast<int>(task % all_heads);
  T* const from = p.qkv + token * p.qkv_stride + int64_t{head} * p.head_dim;
  const bool is_q = head < p.heads, is_v = head >= p.heads + p.kv_heads;

  float a[kLanePairs], b[kLanePairs];  // channels i and i + half
#pragma unroll
  for (int v = 0; v < kLanePairs; ++v) {
    const int i = lane + v * 32;
    a[v] = i < half ? sm90::widen(from[i]) : 0.0f;
    b[v] = i < half ? sm90::widen(from[half + i]) : 0.0f;
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
    const float* const row = p.cos_sin + token * p.cos_sin_stride;
#pragma unroll
    for (int v = 0; v < kLanePairs; ++v) {
      const int i = lane + v * 32;
      if (i >= half) continue;
      const float cosine = row[i], sine = row[half + i], x = a[v], y = b[v];
      a[v] = fmaf(x, cosine, -(y * sine));
      b[v] = fmaf(y, cosine, x * sine);
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
  const sm90::TokenPlace place = sm90::find_token(p.step, token);
  const int kv_head = head - p.heads - (is_v ? p.kv_heads : 0);
  std::byte* const base = is_v ? p.kv.value : p.kv.key;
  store(reinterpret_cast<Kv*>(base + sm90::slot_offset(p.step, p.kv, place.sequence, place.position) +
                              kv_head * p.kv.head_stride_bytes));
}

template <class T, class Kv>
Status start(const RopeKvWriteArgs& args, ExecContext& exec) {
  HEARTH_TRY_ASSIGN(const sm90::DeviceStep step, sm90::device_step("rope_kv_write", *args.batch, exec));
  const RopeParams<T, Kv> params{.qkv = static_cast<T*>(args.qkv.data),
                                 .cos_sin = static_cast<const float*>(args.cos_sin.data),
                                 .q_norm = args.q_norm.data,
                                 .k_norm = args.k_norm.data,
                                 .qkv_stride = args.qkv.row_stride,
                                 .cos_sin_stride = args.cos_sin.row_stride,
                                 .step = step,
                                 .kv = sm90::device_kv(args.kv, args.layer),
                                 .tasks = args.qkv.rows() * (args.heads + 2 * args.kv_heads),
                                 .heads = static_cast<int>(args.heads),
                                 .kv_heads = static_cast<int>(args.kv_heads),
                                 .head_dim = static_cast<int>(args.head_dim),
                                 .q_norm_f32 = args.q_norm.dtype == DType::kF32,
                                 .k_norm_f32 = args.k_norm.dtype == DType::kF32,
                                 .eps = args.norm_eps};
  Launch how(dim3(static_cast<unsigned>((params.tasks + kWarps - 1) / kWarps)), dim3(kThreads), exec.stream);
  how.pdl = true;
  return launch(how, rope_kv_write_kernel<T, Kv>, params);
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
  if (args.head_dim > 64 * kLanePairs)
    return unsupported("rope_kv_write: head dim is {}, the GPU's kernel has at most {}", args.head_dim,
                       64 * kLanePairs);
  const bool f32 = args.qkv.dtype == DType::kF32;
  switch (args.kv.layout.format) {
    case KvFormatId::kF32: return f32 ? start<float, float>(args, exec) : start<__nv_bfloat16, float>(args, exec);
    case KvFormatId::kBf16:
      return f32 ? start<float, __nv_bfloat16>(args, exec) : start<__nv_bfloat16, __nv_bfloat16>(args, exec);
    default:
      return unsupported("rope_kv_write: KV format {}, the GPU's kernel has f32 and bf16",
                         kv_format_name(args.kv.layout.format));
  }
}

}  // namespace hearth
