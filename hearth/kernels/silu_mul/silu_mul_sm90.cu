// SPDX-License-Identifier: Apache-2.0
// silu_mul on Hopper, in f32: 8 channels a thread, or one where rows do not lie in whole vectors; or, with rounding to
// E4M3, rows whose values stay in registers between their largest magnitude and the rounding (silu_mul_sm90.h), so that
// they are read once.
#include "hearth/kernels/silu_mul/silu_mul_sm90.h"

#include <type_traits>
#include <utility>

#include "hearth/kernels/sm90/cluster.cuh"
#include "hearth/kernels/sm90/e4m3.cuh"
#include "hearth/kernels/sm90/mma.cuh"
#include "hearth/kernels/sm90/pdl.cuh"
#include "hearth/memory/cuda/device.h"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth {
namespace {

constexpr int kThreads = 256;
constexpr int kVector = 8;

template <class T>
struct SiluMulParams {
  const T* gate_up;
  T* out;
  int64_t gate_up_stride, out_stride, ffn;
};

// silu(gate) * up in f32, each operation rounded.
__device__ __forceinline__ float silu_mul(float gate, float up) {
  return __fmul_rn(__fdiv_rn(gate, __fadd_rn(1.0f, expf(-gate))), up);
}

// The same for bf16, with the fast exponential and reciprocal: with expf and a division to nearest, arithmetic decides
// how long rows take, not memory (docs/kernels/rows-sm90.md). The
// same operations in every kernel: rounded or not, the same bits. The bounds of silu_mul.h: SiluMulSm90Formula goes
// over all gates, SiluMulSm90.EveryGate over what comes of them. -0 for gates below -91; NaN for -infinity, as in the
// definition.
__device__ __forceinline__ __nv_bfloat16 silu_mul(__nv_bfloat16 gate, __nv_bfloat16 up) {
  constexpr float kLog2E = 1.44269504f;
  // All by 2^-4: the reciprocal stays above 2^-126 as long as exp(-gate) is finite.
  const float g = sm90::widen(gate), e = sm90::exp2_fast(__fmaf_rn(g, -kLog2E, -4.0f));
  const float sigmoid = __fmul_rn(sm90::reciprocal_fast(__fadd_rn(e, 0x1p-4f)), 0x1p-4f);
  return sm90::narrow<__nv_bfloat16>(__fmul_rn(__fmul_rn(g, sigmoid), sm90::widen(up)));
}

// Grid (pieces of a row, rows).
template <class T>
__global__ void __launch_bounds__(kThreads) silu_mul_kernel(SiluMulParams<T> p) {
  sm90::pdl_launch_next();
  sm90::pdl_wait();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= p.ffn) return;
  const T* const gate = p.gate_up + blockIdx.y * p.gate_up_stride;
  p.out[blockIdx.y * p.out_stride + i] = silu_mul(gate[i], gate[p.ffn + i]);
}

// kVector neighbouring channels a thread, for rows that lie in whole vectors; grid as above.
__global__ void __launch_bounds__(kThreads) silu_mul_vectors_kernel(SiluMulParams<__nv_bfloat16> p) {
  using Numbers = sm90::Pack<__nv_bfloat16, kVector>;
  sm90::pdl_launch_next();
  sm90::pdl_wait();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x, all = p.ffn / kVector;
  if (i >= all) return;
  const auto* const gate = reinterpret_cast<const Numbers*>(p.gate_up + blockIdx.y * p.gate_up_stride);
  const Numbers of_gate = gate[i], of_up = gate[all + i];
  Numbers out;
#pragma unroll
  for (int c = 0; c < kVector; ++c) out.at[c] = silu_mul(of_gate.at[c], of_up.at[c]);
  reinterpret_cast<Numbers*>(p.out + blockIdx.y * p.out_stride)[i] = out;
}

struct SiluRoundParams {
  const __nv_bfloat16* gate_up;
  __nv_bfloat16* out;  // null: none
  uint8_t* codes;
  float* scales;
  const float* static_scale;  // null: of the row
  int64_t gate_up_stride, out_stride, codes_stride;
  int ffn;
};

// Grid: the blocks of a row beside each other, in clusters.
template <int kIndex>
__global__ void __launch_bounds__(sm90::kSiluRoundConfigs[kIndex].threads,
                                  1024 / sm90::kSiluRoundConfigs[kIndex].threads)
    silu_mul_round_kernel(const __grid_constant__ SiluRoundParams p) {
  constexpr sm90::SiluRoundConfig kConfig = sm90::kSiluRoundConfigs[kIndex];
  constexpr int kBlocks = kConfig.blocks, kVectors = kConfig.vectors;
  static_assert(kBlocks <= 32 && kConfig.threads % 32 == 0);
  using Numbers = sm90::Pack<__nv_bfloat16, kVector>;
  using Codes = sm90::Pack<uint8_t, kVector>;
  __shared__ unsigned of_warp[kConfig.threads / 32], of_block[kBlocks];
  if constexpr (kBlocks > 1) sm90::cluster_arrive();  // this block has started
  const int64_t row = blockIdx.x / kBlocks;
  const int rank = blockIdx.x % kBlocks;
  const int all = p.ffn / kVector, share = (all + kBlocks - 1) / kBlocks;
  const int first = rank * share + threadIdx.x, end = min(all, rank * share + share);
  sm90::pdl_launch_next();
  sm90::pdl_wait();

  const auto* const gate = reinterpret_cast<const Numbers*>(p.gate_up + row * p.gate_up_stride);
  Numbers value[kVectors], of_up[kVectors];  // the gates, then the results
#pragma unroll
  for (int v = 0; v < kVectors; ++v)
    if (const int i = first + v * kConfig.threads; i < end) value[v] = gate[i], of_up[v] = gate[all + i];
  unsigned largest = 0;
#pragma unroll
  for (int v = 0; v < kVectors; ++v)
    if (const int i = first + v * kConfig.threads; i < end) {
#pragma unroll
      for (int c = 0; c < kVector; ++c) value[v].at[c] = silu_mul(value[v].at[c], of_up[v].at[c]);
      largest = sm90::largest_magnitude(value[v], largest);
      if (p.out != nullptr) reinterpret_cast<Numbers*>(p.out + row * p.out_stride)[i] = value[v];
    }
  largest = sm90::block_largest<kConfig.threads / 32>(largest, of_warp);
  if constexpr (kBlocks > 1) {
    sm90::cluster_wait();  // all blocks have started
    if (threadIdx.x < kBlocks) sm90::store_cluster(&of_block[rank], threadIdx.x, largest);
    sm90::cluster_arrive();
    sm90::cluster_wait();  // all have told all
    for (const unsigned other : of_block) largest = max(largest, other);
  }
  const float scale = p.static_scale != nullptr ? *p.static_scale : sm90::e4m3_scale_of(largest);
  if (rank == 0 && threadIdx.x == 0) p.scales[row] = scale;
  const sm90::E4m3Rounding rounding(scale, largest);
#pragma unroll
  for (int v = 0; v < kVectors; ++v)
    if (const int i = first + v * kConfig.threads; i < end)
      reinterpret_cast<Codes*>(p.codes + row * p.codes_stride)[i] = rounding(value[v]);
}

// A block a row, channel by channel.
__global__ void __launch_bounds__(kThreads) silu_mul_round_elements_kernel(const __grid_constant__ SiluRoundParams p) {
  __shared__ unsigned of_warp[kThreads / 32];
  sm90::pdl_launch_next();
  sm90::pdl_wait();
  const int64_t row = blockIdx.x;
  const __nv_bfloat16* const gate = p.gate_up + row * p.gate_up_stride;
  const auto value = [&](int i) { return silu_mul(gate[i], gate[p.ffn + i]); };
  unsigned largest = 0;
  for (int i = threadIdx.x; i < p.ffn; i += kThreads) largest = max(largest, sm90::magnitude(sm90::widen(value(i))));
  largest = sm90::block_largest<kThreads / 32>(largest, of_warp);
  const float scale = p.static_scale != nullptr ? *p.static_scale : sm90::e4m3_scale_of(largest);
  if (threadIdx.x == 0) p.scales[row] = scale;
  for (int i = threadIdx.x; i < p.ffn; i += kThreads) {
    const __nv_bfloat16 number = value(i);
    if (p.out != nullptr) p.out[row * p.out_stride + i] = number;
    p.codes[row * p.codes_stride + i] = sm90::round_e4m3(sm90::widen(number), scale);
  }
}

bool in_vectors(const SiluMulArgs& args) {
  const auto fits = [](const ConstTensorView& view) {
    return reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && (view.rows() == 1 || view.row_stride % kVector == 0);
  };
  return args.out.cols() % kVector == 0 && fits(args.gate_up) && fits(args.out);
}

template <class T>
Status start(const SiluMulArgs& args, ExecContext& exec) {
  constexpr int64_t kMostRows = 65535;  // of a grid's second dimension
  const bool vectors = args.out.dtype == DType::kBf16 && in_vectors(args);
  const int64_t rows = args.out.rows(), ffn = args.out.cols();
  for (int64_t row = 0; row < rows; row += kMostRows) {
    const SiluMulParams<T> params{static_cast<const T*>(args.gate_up.data) + row * args.gate_up.row_stride,
                                  static_cast<T*>(args.out.data) + row * args.out.row_stride, args.gate_up.row_stride,
                                  args.out.row_stride, ffn};
    const int64_t units = vectors ? ffn / kVector : ffn;
    const dim3 grid(static_cast<unsigned>((units + kThreads - 1) / kThreads),
                    static_cast<unsigned>(rows - row < kMostRows ? rows - row : kMostRows));
    Launch how(grid, dim3(kThreads), exec.stream);
    how.pdl = true;
    if constexpr (std::is_same_v<T, __nv_bfloat16>) {
      if (vectors) {
        HEARTH_TRY(launch(how, silu_mul_vectors_kernel, params));
        continue;
      }
    }
    HEARTH_TRY(launch(how, silu_mul_kernel<T>, params));
  }
  return {};
}

template <int kIndex>
Status start_round(const SiluRoundParams& params, int64_t rows, void* stream) {
  constexpr sm90::SiluRoundConfig kConfig = sm90::kSiluRoundConfigs[kIndex];
  Launch how(dim3(static_cast<unsigned>(rows * kConfig.blocks)), dim3(kConfig.threads), stream);
  how.pdl = true;
  if constexpr (kConfig.vectors == 0) {
    return launch(how, silu_mul_round_elements_kernel, params);
  } else {
    how.cluster = kConfig.blocks;
    return launch(how, silu_mul_round_kernel<kIndex>, params);
  }
}

template <int... kIndex>
Status start_round_config(int config, const SiluRoundParams& params, int64_t rows, void* stream,
                          std::integer_sequence<int, kIndex...>) {
  using Start = Status (*)(const SiluRoundParams&, int64_t, void*);
  static constexpr Start kStart[] = {start_round<kIndex>...};
  return kStart[config](params, rows, stream);
}

Status start_rounded(const SiluMulArgs& args, ExecContext& exec) {
  const RoundedRows& rounded = args.rounded;
  const int64_t rows = rounded.codes.shape[0];
  if (args.gate_up.dtype != DType::kBf16)
    return unsupported("silu_mul: rounded rows of {}, the GPU's kernel has them of bf16",
                       dtype_name(args.gate_up.dtype));
  if (rows > (INT32_MAX >> 3) || rounded.codes.cols() > INT32_MAX / 2)
    return invalid_argument("silu_mul: {} to round, wanted at most {} rows of {}", to_string(rounded.codes.shape),
                            INT32_MAX >> 3, INT32_MAX / 2);
  HEARTH_TRY_ASSIGN(const CudaDeviceInfo* device, current_cuda_device());
  const SiluRoundParams params{.gate_up = static_cast<const __nv_bfloat16*>(args.gate_up.data),
                               .out = static_cast<__nv_bfloat16*>(args.out.data),
                               .codes = static_cast<uint8_t*>(rounded.codes.data),
                               .scales = static_cast<float*>(rounded.scales.data),
                               .static_scale = static_cast<const float*>(rounded.static_scale.data),
                               .gate_up_stride = args.gate_up.row_stride,
                               .out_stride = args.out.row_stride,
                               .codes_stride = rounded.codes.row_stride,
                               .ffn = static_cast<int>(rounded.codes.cols())};
  return start_round_config(sm90::select_silu_round_config(args, device->multiprocessors), params, rows, exec.stream,
                            std::make_integer_sequence<int, sm90::kSiluRoundConfigCount>());
}

}  // namespace

Status silu_mul_sm90(const SiluMulArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate(args));
  if (args.gate_up.rows() == 0) return {};
  if (args.rounded) return start_rounded(args, exec);
  return args.out.dtype == DType::kF32 ? start<float>(args, exec) : start<__nv_bfloat16>(args, exec);
}

}  // namespace hearth
