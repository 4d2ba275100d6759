// SPDX-License-Identifier: Apache-2.0
// BF16 attention on Hopper's tensor cores: the tensor map, the parameters, the launches. Host code; no state but what
// the driver said about the device.
#include <algorithm>

#include "hearth/kernels/attention/attention_bf16_decode_sm90.cuh"
#include "hearth/kernels/attention/attention_bf16_prefill_sm90.cuh"
#include "hearth/kernels/attention/attention_bf16_start.cuh"
#include "hearth/kernels/sm90/tensor_map.cuh"

namespace hearth {
namespace {

using namespace sm90;

// All blocks of the pool: channels, tokens of a block, and an address in units of 64 bytes. A copy brings 64 channels
// of a block's tokens, of `most_tokens` of them at most.
Result<CUtensorMap> encode_kv_map(const KvView& kv, int64_t most_tokens) {
  const KvLayout& layout = kv.layout;
  TensorMapShape shape{.rank = 3};
  shape.size[0] = static_cast<uint64_t>(layout.head_dim);
  shape.size[1] = static_cast<uint64_t>(layout.block_tokens);
  shape.size[2] = (uint64_t{1} << 31) - 1;
  shape.stride_bytes[1] = static_cast<uint64_t>(layout.token_stride_bytes);
  shape.stride_bytes[2] = kKvUnitBytes;
  shape.box[0] = 64;
  shape.box[1] = static_cast<uint32_t>(std::min(layout.block_tokens, most_tokens));
  return encode_tensor_map(kv.base, 2, shape);
}

template <int kDim>
Status start_decode(const AttentionArgs& args, Bf16AttentionParams p, ExecContext& exec) {
  HEARTH_TRY_ASSIGN(const CUtensorMap map, encode_kv_map(args.kv, kDecodeStage<kDim>));
  HEARTH_TRY_ASSIGN(const int blocks, multiprocessors());
  p.box_shift = std::min(p.block_shift, log2_of(kDecodeStage<kDim>));
  HEARTH_TRY(launch_with_shared(Launch(dim3(static_cast<unsigned>(blocks)), dim3(kDecodeThreads<kDim>), exec.stream),
                                kDecodeSharedBytes<kDim>, attention_bf16_decode_kernel<kDim>, map, p));
  if (args.batch->block_table_stride * args.kv.layout.block_tokens <= kDecodeChunk || p.slots == 0) return {};
  Launch how(dim3(static_cast<unsigned>(p.step.sequences), static_cast<unsigned>(p.heads)), dim3(kDim), exec.stream);
  how.pdl = true;
  return launch(how, attention_bf16_merge_kernel<kDim>, p);
}

template <int kDim>
Status start_prefill(const AttentionArgs& args, Bf16AttentionParams p, ExecContext& exec) {
  HEARTH_TRY_ASSIGN(const CUtensorMap map, encode_kv_map(args.kv, kPrefillKeys));
  p.box_shift = std::min(p.block_shift, log2_of(kPrefillKeys));
  HEARTH_TRY_ASSIGN(const int most_blocks, multiprocessors());
  const unsigned blocks = prefill_blocks(*args.batch, p, most_blocks);
  return launch_with_shared(Launch(dim3(blocks), dim3(kPrefillThreads), exec.stream), kPrefillSharedBytes<kDim>,
                            attention_bf16_prefill_kernel<kDim>, map, p);
}

}  // namespace

Status attention_bf16_sm90(const AttentionArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate(args));
  if (!takes_attention_bf16(args))
    return unsupported("attention: the tensor-core kernels do not take this call; attention_sm90() does");
  const int64_t tokens = args.q.rows(), sequences = args.batch->num_sequences();
  if (tokens == 0) return {};
  HEARTH_TRY_ASSIGN(const DeviceStep step, device_step("attention", *args.batch, exec));
  const KvLayout& layout = args.kv.layout;
  Bf16AttentionParams p = bf16_attention_params(args, step, exec);
  p.partials = reinterpret_cast<float*>(exec.workspace.data());
  p.partial_floats = decode_partial_floats(p.group, layout.head_dim);
  p.slots = static_cast<int>(
      std::min<int64_t>(int64_t{1} << 30, static_cast<int64_t>(exec.workspace.size()) / 4 / p.partial_floats));
  // Which kernels there is work for is the shape of the step, which a graph is captured for, and not the lengths.
  bool decodes = false, prefills = false;
  for (int64_t s = 0; s < sequences; ++s) {
    decodes |= args.batch->query_len(s) == 1;
    prefills |= args.batch->query_len(s) > 1;
  }
  const bool wide = layout.head_dim == 128;
  if (prefills) {
    HEARTH_TRY(wide ? start_prefill<128>(args, p, exec) : start_prefill<64>(args, p, exec));
  }
  if (decodes) {
    HEARTH_TRY(wide ? start_decode<128>(args, p, exec) : start_decode<64>(args, p, exec));
  }
  return {};
}

}  // namespace hearth
