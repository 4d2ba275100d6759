// SPDX-License-Identifier: Apache-2.0
// Chooses how the kernel of linear_units_sm90.cuh divides shared memory, and starts it.
#include <bit>

#include "hearth/kernels/linear/linear_units_sm90.cuh"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth::sm90 {
namespace {

int ceil_div(int a, int b) { return (a + b - 1) / b; }

bool rounds_x(const WeightFormat& format) { return format.act != ActFormat::kNative; }

// Beside the rings and x: barriers, which lie outside of dynamic shared memory, and what aligns it.
constexpr int kOtherBytes = 3 * 1024;
// What rings have at least: x is brought in slabs before they have less. And at most: five times what the memory's
// latency needs; more under way only delays x.
constexpr int kLeastRingBytes = 50 * 1024, kMostRingBytes = 102 * 1024;

// The ring: whole shares of a segment where that is all that a warp ever asks for, because few copies are quick to ask
// for; else pieces of two units or one, so that several are under way. x in rows: all, or as many segments as leave room.
template <class Codec, int kTiles, bool kRows>
bool divide_memory(UnitsParams& p, int blocks, const UnitsRing& ring) {
  using Shape = UnitsShape<Codec, kTiles, kRows>;
  const int room = kUnitSharedBytes - kOtherBytes - Shape::kSumBytes;
  const int segments = ceil_div(p.unit_columns, kUnitSegment);
  p.slab_units = p.unit_columns;
  if (Shape::x_bytes(p.slab_units, p.m) > room - kLeastRingBytes) {
    if (!kRows) return false;
    int held = segments - 1;
    while (held > 1 && Shape::x_bytes(held * kUnitSegment, p.m) > room - kLeastRingBytes) --held;
    p.slab_units = std::max(1, held) * kUnitSegment;
  }
  const int free_bytes = room - Shape::x_bytes(p.slab_units, p.m);
  const int ring_bytes = ring.piece > 0 ? free_bytes : std::min(free_bytes, kMostRingBytes);
  const int strips = ceil_div(p.strips, blocks);                  // of a block
  const int shares = segments * ceil_div(strips, Shape::kTeams);  // of a warp
  p.ring_warps = std::min(strips, Shape::kTeams) * kUnitTeamWarps;
  constexpr int kShare = kUnitSegment / kUnitTeamWarps;
  const auto slots = [&](int piece) { return ring_bytes / (p.ring_warps * piece * p.unit_bytes); };
  p.piece = kShare;
  if (slots(kShare) < shares) p.piece = slots(2) >= 2 ? 2 : 1;
  if (ring.piece > 0) p.piece = ring.piece;
  p.slots = std::min(slots(p.piece), kUnitMostSlots);
  if (ring.slots > p.slots) return false;
  if (ring.slots > 0) p.slots = ring.slots;
  return p.slots >= 1;
}

template <class Codec, int kTiles, bool kRows>
Status start(UnitsParams p, int blocks, void* stream, const UnitsRing& ring) {
  using Shape = UnitsShape<Codec, kTiles, kRows>;
  if (!divide_memory<Codec, kTiles, kRows>(p, blocks, ring))
    return unsupported("linear: no room for pieces of {} units", p.piece);
  const auto kernel = linear_units_kernel<Codec, kTiles, kRows>;
  Launch how(dim3(static_cast<unsigned>(blocks)), dim3(Shape::kThreads), stream);
  how.pdl = true;
  how.shared_bytes =
      p.ring_warps * p.slots * p.piece * p.unit_bytes + Shape::x_bytes(p.slab_units, p.m) + Shape::kSumBytes;
  HEARTH_TRY(enter_cuda_device());
  // The same for every product: another thread may be about to start this kernel.
  HEARTH_CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kUnitSharedBytes));
  return launch(how, kernel, p);
}

// x of E4M3 becomes f16 on its way to shared memory where there is room.
template <class Codec, int kTiles>
Status start(const UnitsParams& p, const CudaDeviceInfo& device, void* stream, const UnitsRing& ring) {
  if (kUnitSharedBytes > device.block_shared_bytes)
    return unsupported("linear: a block of this GPU has {} bytes of shared memory, wanted {}",
                       device.block_shared_bytes, kUnitSharedBytes);
  const int blocks = std::min(p.strips, device.multiprocessors);
  if constexpr (!Codec::kBf16 && Codec::kHasHalves) {
    using Shape = UnitsShape<Codec, kTiles, false>;
    const int room = kUnitSharedBytes - kOtherBytes - Shape::kSumBytes - kLeastRingBytes;
    if (Shape::x_bytes(p.unit_columns, p.m) <= room) return start<Codec, kTiles, false>(p, blocks, stream, ring);
  }
  return start<Codec, kTiles, true>(p, blocks, stream, ring);
}

template <class Codec>
Status start(const UnitsParams& p, const CudaDeviceInfo& device, void* stream, const UnitsRing& ring) {
  return p.m <= kUnitTokens ? start<Codec, 1>(p, device, stream, ring) : start<Codec, 2>(p, device, stream, ring);
}

UnitsPart part_of(const LinearArgs& args, int first_strip) {
  const LinearWeight& w = *args.weight;
  return {.units = static_cast<const uint8_t*>(w.units.data),
          .n = static_cast<int>(w.n),
          .first_strip = first_strip,
          .bias = w.bias.data,
          .residual = args.residual.data,
          .out = args.out.data,
          .residual_stride = args.residual.row_stride,
          .out_stride = args.out.row_stride,
          .bias_dtype = w.bias.dtype,
          .out_dtype = args.out.dtype};
}

UnitsX form_of(const LinearArgs& args) {
  if (args.x.dtype == DType::kE4m3 || !rounds_x(args.weight->format)) return UnitsX::kAsIs;
  return args.weight->act_scale ? UnitsX::kToRoundBy : UnitsX::kToRound;
}

}  // namespace

bool fits_units(std::span<const LinearArgs> parts) {
  constexpr int64_t kMost = int64_t{1} << 30;
  const LinearArgs& first = parts.front();
  const ConstTensorView& x = first.x;
  const bool in_vectors =
      reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && (x.rows() == 1 || dtype_bytes(x.dtype, x.row_stride) % 16 == 0);
  if (parts.size() > kUnitsMostParts || !in_vectors || x.dtype == DType::kF32) return false;
  return std::ranges::all_of(parts, [&](const LinearArgs& args) {
    const LinearWeight& w = *args.weight;
    return w.units && w.format == first.weight->format && w.k == first.weight->k && w.n > 0 && w.n < kMost &&
           w.k < kMost && (parts.size() == 1 || !w.act_scale);
  });
}

bool units_round_x(int64_t m, int64_t k) {
  const auto tokens = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(m)));
  return m <= kUnitTokens && k / 32 <= kUnitKept * (32 * kUnitMostTeams * kUnitTeamWarps / 4 / tokens);
}

Status linear_units(std::span<const LinearArgs> parts, void* stream, UnitsRing ring) {
  HEARTH_TRY_ASSIGN(const CudaDeviceInfo* device, current_cuda_device());
  const LinearArgs& first = parts.front();
  const LinearWeight& w = *first.weight;
  UnitsParams p{.m = static_cast<int>(first.x.rows()),
                .unit_columns = static_cast<int>(w.k / kUnitColumns),
                .unit_bytes = unit_bytes(w.format),
                .scale_dtype = unit_scale_dtype(w.format),
                .has_zeros = w.format.has_zero_point,
                .x_form = form_of(first),
                .x = first.x.data,
                .x_stride = dtype_bytes(first.x.dtype, first.x.row_stride),
                .x_scale = static_cast<const float*>(first.x_scale.data)};
  if (p.x_form == UnitsX::kToRoundBy) p.x_scale = static_cast<const float*>(w.act_scale.data);
  for (const LinearArgs& args : parts) {
    p.part[p.parts++] = part_of(args, p.strips);
    p.strips += ceil_div(static_cast<int>(args.weight->n), kUnitRows);
  }
  switch (unit_order(w.format)) {
    case UnitOrder::kSigns: return start<SignUnits>(p, *device, stream, ring);
    case UnitOrder::kLevels: return start<LevelUnits>(p, *device, stream, ring);
    case UnitOrder::kOffsets: return start<OffsetUnits<false>>(p, *device, stream, ring);
    default: return start<OffsetUnits<true>>(p, *device, stream, ring);
  }
}

}  // namespace hearth::sm90
