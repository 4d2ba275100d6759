// SPDX-License-Identifier: Apache-2.0
// The kernels of vocabulary_test. One block each.
#include "hearth/kernels/sm90/mma.cuh"
#include "hearth/kernels/sm90/tensor_map.cuh"
#include "hearth/kernels/sm90/tma.cuh"
#include "hearth/kernels/sm90/vocabulary_test.h"
#include "hearth/kernels/sm90/wgmma.cuh"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth::sm90 {
namespace {

constexpr int kMostN = 256;
constexpr int kSteps = 2 * 128 / 32;  // instructions along K: two rows of 128 bytes

template <Operands kType>
using Accumulator = std::conditional_t<kType == Operands::kS8, int32_t, float>;
template <Operands kType>
constexpr int kElementBytes = kType == Operands::kBf16 || kType == Operands::kF16 ? 2 : 1;

struct ProductShared {
  alignas(1024) std::byte a[2][64 * 128];
  alignas(1024) std::byte b[2 * kMostN * 128];
  MBarrier full;
};

__device__ std::byte* aligned_shared(std::byte* raw) { return raw + (1024 - shared_address(raw) % 1024) % 1024; }

// `tiles` tiles of 128 bytes of the columns of a matrix of `rows` rows, swizzled, one after the other.
__device__ void store_tiles(std::byte* to, const std::byte* from, int rows, int tiles) {
  for (int i = threadIdx.x; i < rows * tiles * 8; i += blockDim.x) {
    const int row = i / (tiles * 8), piece = i % (tiles * 8);
    *reinterpret_cast<uint4*>(to + piece / 8 * rows * 128 + swizzled_offset(row, piece % 8 * 16)) =
        *reinterpret_cast<const uint4*>(from + row * tiles * 128 + piece * 16);
  }
}

template <Operands kType, int kN, bool kRegistersA, bool kAlongN>
__global__ void __launch_bounds__(128)
    product_kernel(const __grid_constant__ CUtensorMap a_map, const __grid_constant__ CUtensorMap b_map,
                   const std::byte* a, const std::byte* b, Accumulator<kType>* d, bool by_map) {
  extern __shared__ std::byte raw[];
  auto& shared = *reinterpret_cast<ProductShared*>(aligned_shared(raw));
  constexpr int kBytes = kElementBytes<kType>, kK = 256 / kBytes;
  constexpr int kBRows = kAlongN ? kK : kN, kBTiles = kAlongN ? kN * kBytes / 128 : 2;
  const int thread = threadIdx.x;
  if (thread == 0) {
    shared.full.init(1);
    fence_barrier_init();
  }
  __syncthreads();
  if (by_map) {
    if (thread == 0) {
      shared.full.arrive_and_expect((2 * 64 + kBRows * kBTiles) * 128);
      for (int t = 0; t < 2; ++t) copy_tensor(shared.a[t], a_map, t * 128 / kBytes, 0, shared.full);
      for (int t = 0; t < kBTiles; ++t)
        copy_tensor(shared.b + t * kBRows * 128, b_map, t * 128 / kBytes, 0, shared.full);
    }
    shared.full.wait_or_fault(0);
  } else {
    store_tiles(shared.a[0], a, 64, 2);
    store_tiles(shared.b, b, kBRows, kBTiles);
    fence_async_shared();
    __syncthreads();
  }

  Accumulator<kType> sum[kN / 2] = {};
  uint32_t fragment[kSteps][4];
  if constexpr (kRegistersA) {
    const int row = thread / 32 * 16 + thread % 32 / 4;
    for (int i = 0; i < kSteps; ++i)
      for (int n = 0; n < 4; ++n)
        fragment[i][n] =
            *reinterpret_cast<const uint32_t*>(a + (row + n % 2 * 8) * 256 + i * 32 + n / 2 * 16 + thread % 4 * 4);
    pin_registers(fragment);
  }
  pin_registers(sum);
  wgmma_begin();
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    const uint64_t from_a = wgmma_operand(shared_address(shared.a[i / 4]) + i % 4 * 32);
    const uint64_t from_b = kAlongN ? wgmma_operand(shared_address(shared.b) + i * 2048, kBRows * 128)
                                    : wgmma_operand(shared_address(shared.b) + i / 4 * kBRows * 128 + i % 4 * 32);
    if constexpr (kType == Operands::kBf16) {
      if constexpr (kRegistersA) {
        wgmma_bf16<kN, kAlongN>(sum, fragment[i], from_b, i > 0);
      } else {
        wgmma_bf16<kN, kAlongN>(sum, from_a, from_b, i > 0);
      }
    } else if constexpr (kType == Operands::kF16) {
      if constexpr (kRegistersA) {
        wgmma_f16<kN, kAlongN>(sum, fragment[i], from_b, i > 0);
      } else {
        wgmma_f16<kN, kAlongN>(sum, from_a, from_b, i > 0);
      }
    } else if constexpr (kType == Operands::kE4m3) {
      if constexpr (kRegistersA) {
        wgmma_e4m3<kN>(sum, fragment[i], from_b, i > 0);
      } else {
        wgmma_e4m3<kN>(sum, from_a, from_b, i > 0);
      }
    } else {
      if constexpr (kRegistersA) {
        wgmma_s8<kN>(sum, fragment[i], from_b, i > 0);
      } else {
        wgmma_s8<kN>(sum, from_a, from_b, i > 0);
      }
    }
  }
  wgmma_commit();
  wgmma_wait<0>();
  pin_registers(sum);
  for (int i = 0; i < kN / 2; ++i)
    d[(thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8) * kN + i / 4 * 8 + thread % 4 * 2 + i % 2] = sum[i];
}

template <Operands kType, int kN, bool kRegistersA, bool kAlongN>
Status start_product(const ProductCase& c, const void* a, const void* b, void* d, void* stream) {
  constexpr uint64_t kBytes = kElementBytes<kType>, kK = 256 / kBytes;
  constexpr uint64_t kBRows = kAlongN ? kK : kN, kBColumns = kAlongN ? kN : kK;
  HEARTH_TRY_ASSIGN(
      const CUtensorMap a_map,
      encode_tensor_map(a, kBytes, {.size = {kK, 64}, .stride_bytes = {kBytes, 256}, .box = {128 / kBytes, 64}}));
  HEARTH_TRY_ASSIGN(const CUtensorMap b_map, encode_tensor_map(b, kBytes,
                                                               {.size = {kBColumns, kBRows},
                                                                .stride_bytes = {kBytes, kBColumns * kBytes},
                                                                .box = {128 / kBytes, kBRows}}));
  const auto kernel = product_kernel<kType, kN, kRegistersA, kAlongN>;
  Launch how(dim3(1), dim3(128), stream);
  how.shared_bytes = sizeof(ProductShared) + 1024;
  HEARTH_TRY(enter_cuda_device());
  HEARTH_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, how.shared_bytes));
  return launch(how, kernel, a_map, b_map, static_cast<const std::byte*>(a), static_cast<const std::byte*>(b),
                static_cast<Accumulator<kType>*>(d), c.route == Route::kTensorMap);
}

template <Operands kType, int kN>
Status start_product(const ProductCase& c, const void* a, const void* b, void* d, void* stream) {
  if constexpr (kElementBytes<kType> == 2 && kN % 64 == 0) {
    if (c.b_along_n)
      return c.registers_a ? start_product<kType, kN, true, true>(c, a, b, d, stream)
                           : start_product<kType, kN, false, true>(c, a, b, d, stream);
  }
  if (c.b_along_n)
    return invalid_argument("vocabulary test: B along N wants 16 bits and N of whole tiles, found {}", c.n);
  return c.registers_a ? start_product<kType, kN, true, false>(c, a, b, d, stream)
                       : start_product<kType, kN, false, false>(c, a, b, d, stream);
}

template <Operands kType>
Status start_product(const ProductCase& c, const void* a, const void* b, void* d, void* stream) {
  switch (c.n) {
    case 8: return start_product<kType, 8>(c, a, b, d, stream);
    case 16: return start_product<kType, 16>(c, a, b, d, stream);
    case 32: return start_product<kType, 32>(c, a, b, d, stream);
    case 64: return start_product<kType, 64>(c, a, b, d, stream);
    case 128: return start_product<kType, 128>(c, a, b, d, stream);
    default: return start_product<kType, 256>(c, a, b, d, stream);
  }
}

// A and B as 16-bit elements, or pairs of 8-bit ones.
__global__ void __launch_bounds__(32)
    small_product_kernel(SmallProductCase c, const uint16_t* a, const uint16_t* b, float* d) {
  __shared__ alignas(16) uint16_t left[16][16], right[16][16];
  const int lane = threadIdx.x;
  const int columns = c.b_along_n ? 8 : 16;
  for (int i = lane; i < 256; i += 32) left[i / 16][i % 16] = a[i];
  for (int i = lane; i < 128; i += 32) right[i / columns][i % columns] = b[i];
  __syncwarp();
  uint32_t x[4], y[4];
  load_matrices(x, shared_address(&left[lane % 16][lane / 16 * 8]));
  if (c.b_along_n) {
    load_matrices_transposed(y, shared_address(&right[lane % 16][0]));
  } else {
    load_matrices(y, shared_address(&right[lane % 8][lane / 8 % 2 * 8]));
  }
  float* const at = d + lane / 4 * 8 + lane % 4 * 2;
  if (c.upper) {
    float sum[2] = {at[0], at[1]};
    mma_bf16_upper(sum, x[0], x[2], y[0], y[1]);
    for (int i = 0; i < 2; ++i) at[i] = sum[i];
  } else if (c.type == Operands::kS8 || c.type == Operands::kU8AndS8) {
    int sum[4] = {static_cast<int>(at[0]), static_cast<int>(at[1]), static_cast<int>(at[64]), static_cast<int>(at[65])};
    if (c.type == Operands::kS8) mma_s8(sum, x, y[0], y[1]);
    if (c.type == Operands::kU8AndS8) mma_u8_s8(sum, x, y[0], y[1]);
    for (int i = 0; i < 4; ++i) at[i / 2 * 64 + i % 2] = static_cast<float>(sum[i]);
  } else {
    float sum[4] = {at[0], at[1], at[64], at[65]};
    if (c.type == Operands::kBf16) mma_bf16(sum, x, y[0], y[1]);
    if (c.type == Operands::kF16) mma_f16(sum, x, y[0], y[1]);
    if (c.type == Operands::kE4m3) mma_e4m3(sum, x, y[0], y[1]);
    for (int i = 0; i < 4; ++i) at[i / 2 * 64 + i % 2] = sum[i];
  }
}

__global__ void __launch_bounds__(128) addressed_copies_kernel(const __grid_constant__ CUtensorMap map, const int* unit,
                                                               int first_row, int count, int rows, std::byte* to) {
  extern __shared__ std::byte raw[];
  std::byte* const tile = aligned_shared(raw);
  __shared__ MBarrier full;
  if (threadIdx.x == 0) {
    full.init(1);
    fence_barrier_init();
  }
  __syncthreads();
  for (int i = 0; i < count; ++i) {
    if (threadIdx.x == 0) {
      full.arrive_and_expect(rows * 128);
      copy_tensor(tile, map, 0, first_row, unit[i], full);
    }
    full.wait_or_fault(i % 2);
    for (int e = threadIdx.x; e < rows * 8; e += 128)
      *reinterpret_cast<uint4*>(to + (int64_t{i} * rows * 8 + e) * 16) =
          *reinterpret_cast<const uint4*>(tile + swizzled_offset(e / 8, e % 8 * 16));
    __syncthreads();
  }
}

__global__ void __launch_bounds__(128)
    boxes_kernel(const __grid_constant__ CUtensorMap map, BoxCase c, const int* coordinates, int count, uint4* to) {
  extern __shared__ std::byte raw[];
  auto* const tile = reinterpret_cast<uint4*>(aligned_shared(raw));
  __shared__ MBarrier full;
  if (threadIdx.x == 0) {
    full.init(1);
    fence_barrier_init();
  }
  constexpr uint32_t kPoison = 0xEEEEEEEE;
  const int vectors = c.box[0] * c.box[1] * c.box[2] / 16;
  for (int i = 0; i < count; ++i) {
    for (int e = threadIdx.x; e < vectors; e += 128) tile[e] = make_uint4(kPoison, kPoison, kPoison, kPoison);
    fence_async_shared();
    __syncthreads();
    if (threadIdx.x == 0) {
      const int x = coordinates[i * 3], y = coordinates[i * 3 + 1], z = coordinates[i * 3 + 2];
      full.arrive_and_expect(vectors * 16);
      if (c.rank == 2) {
        c.once ? copy_tensor_once(tile, map, x, y, full) : copy_tensor(tile, map, x, y, full);
      } else {
        c.once ? copy_tensor_once(tile, map, x, y, z, full) : copy_tensor(tile, map, x, y, z, full);
      }
    }
    full.wait_or_fault(i % 2);
    for (int e = threadIdx.x; e < vectors; e += 128) to[int64_t{i} * vectors + e] = tile[e];
    __syncthreads();
  }
}

__global__ void __launch_bounds__(128) bulk_copies_kernel(const std::byte* from, std::byte* to, int bytes, int rounds) {
  extern __shared__ std::byte raw[];
  std::byte* const tile = aligned_shared(raw);
  __shared__ MBarrier full[2], empty[2];
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) full[i].init(1), empty[i].init(96);
    fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    if (threadIdx.x == 0)
      for (int i = 0; i < rounds; ++i) {
        empty[i % 2].wait_or_fault(i / 2 % 2 ^ 1);
        full[i % 2].arrive_and_expect(bytes);
        copy_bulk(tile + i % 2 * bytes, from + int64_t{i} * bytes, bytes, full[i % 2]);
      }
  } else {
    for (int i = 0; i < rounds; ++i) {
      full[i % 2].wait_or_fault(i / 2 % 2);
      uint32_t outcome = 0;
      for (int e = threadIdx.x - 32; e < bytes / 16; e += 96) {
        const uint4 vector = *reinterpret_cast<const uint4*>(tile + i % 2 * bytes + e * 16);
        *reinterpret_cast<uint4*>(to + int64_t{i} * bytes + e * 16) = vector;
        outcome |= vector.x;
      }
      empty[i % 2].arrive_behind_loads(outcome);
    }
  }
}

__global__ void __launch_bounds__(32)
    permutations_kernel(const uint32_t* low, const uint32_t* high, const uint32_t* selector, uint32_t* to, int count) {
  for (int i = threadIdx.x; i < count; i += 32) {
    to[4 * i] = permute_bytes(low[i], high[i], selector[i]);
    to[4 * i + 1] = and_or(low[i], high[i], selector[i]);
    const WidePairs wide = widen_e4m3x4(low[i]);
    to[4 * i + 2] = wide.low, to[4 * i + 3] = wide.high;
  }
}

__global__ void __launch_bounds__(32) reductions_kernel(const float* from, float* to) {
  const int lane = threadIdx.x;
  for (int i = lane; i < 64; i += 32) to[i] = exp2_fast(from[i]), to[128 + i] = reciprocal_fast(from[i]);
  to[64 + lane] = quad_sum(from[lane]);
  to[96 + lane] = quad_max(from[lane]);
}

// Two warps bring pieces of 16 bytes, two others store them.
__global__ void __launch_bounds__(128) small_copies_kernel(const uint4* from, uint4* to, int rounds) {
  __shared__ uint4 tile[64];
  const int thread = threadIdx.x % 64;
  for (int round = 0; round < rounds; ++round) {
    if (threadIdx.x >= 64) {
      named_barrier(2, 128);  // the round before has been read
      copy_16(shared_address(tile + thread), from + round * 64 + thread, (thread + round) % 3 != 0);
      wait_copies();
      named_barrier_arrive(1, 128);
    } else {
      named_barrier_arrive(2, 128);
      named_barrier(1, 128);
      to[round * 64 + thread] = tile[thread];
    }
  }
}

}  // namespace

Status run_product(const ProductCase& c, const void* a, const void* b, void* d, void* stream) {
  switch (c.type) {
    case Operands::kBf16: return start_product<Operands::kBf16>(c, a, b, d, stream);
    case Operands::kF16: return start_product<Operands::kF16>(c, a, b, d, stream);
    case Operands::kE4m3: return start_product<Operands::kE4m3>(c, a, b, d, stream);
    case Operands::kS8: return start_product<Operands::kS8>(c, a, b, d, stream);
    default: break;
  }
  return invalid_argument("vocabulary test: a product by a warpgroup wants bf16, f16, e4m3 or s8");
}

Status run_small_product(const SmallProductCase& c, const void* a, const void* b, void* d, void* stream) {
  return launch(Launch(dim3(1), dim3(32), stream), small_product_kernel, c, static_cast<const uint16_t*>(a),
                static_cast<const uint16_t*>(b), static_cast<float*>(d));
}

Status run_addressed_copies(const void* from, int pitch, int tensor_rows, int first_row, const void* unit, int count,
                            int rows, void* to, void* stream) {
  HEARTH_TRY_ASSIGN(const CUtensorMap map,
                    encode_tensor_map(from, 2,
                                      {.rank = 3,
                                       .size = {64, static_cast<uint64_t>(tensor_rows), (uint64_t{1} << 31) - 1},
                                       .stride_bytes = {2, static_cast<uint64_t>(pitch), 64},
                                       .box = {64, static_cast<uint32_t>(rows), 1}}));
  Launch how(dim3(1), dim3(128), stream);
  how.shared_bytes = rows * 128 + 1024;
  return launch(how, addressed_copies_kernel, map, static_cast<const int*>(unit), first_row, count, rows,
                static_cast<std::byte*>(to));
}

Status run_boxes(const BoxCase& c, const void* from, const void* coordinates, int count, void* to, void* stream) {
  TensorMapShape shape{.rank = c.rank, .swizzle = c.swizzle};
  for (int i = 0; i < 3; ++i) {
    shape.size[i] = static_cast<uint64_t>(c.size[i]);
    shape.stride_bytes[i] = static_cast<uint64_t>(c.stride[i]);
    shape.box[i] = static_cast<uint32_t>(c.box[i]);
  }
  HEARTH_TRY_ASSIGN(const CUtensorMap map, encode_tensor_map(from, 1, shape));
  Launch how(dim3(1), dim3(128), stream);
  how.shared_bytes = c.box[0] * c.box[1] * c.box[2] + 1024;
  return launch(how, boxes_kernel, map, c, static_cast<const int*>(coordinates), count, static_cast<uint4*>(to));
}

Status run_bulk_copies(const void* from, void* to, int bytes, int rounds, void* stream) {
  Launch how(dim3(1), dim3(128), stream);
  how.shared_bytes = 2 * bytes + 1024;
  return launch(how, bulk_copies_kernel, static_cast<const std::byte*>(from), static_cast<std::byte*>(to), bytes,
                rounds);
}

Status run_small_copies(const void* from, void* to, int rounds, void* stream) {
  return launch(Launch(dim3(1), dim3(128), stream), small_copies_kernel, static_cast<const uint4*>(from),
                static_cast<uint4*>(to), rounds);
}

Status run_permutations(const void* low, const void* high, const void* selector, void* to, int count, void* stream) {
  return launch(Launch(dim3(1), dim3(32), stream), permutations_kernel, static_cast<const uint32_t*>(low),
                static_cast<const uint32_t*>(high), static_cast<const uint32_t*>(selector), static_cast<uint32_t*>(to),
                count);
}

Status run_reductions(const void* from, void* to, void* stream) {
  return launch(Launch(dim3(1), dim3(32), stream), reductions_kernel, static_cast<const float*>(from),
                static_cast<float*>(to));
}

}  // namespace hearth::sm90
