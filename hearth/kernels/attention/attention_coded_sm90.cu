// SPDX-License-Identifier: Apache-2.0
// Prefill attention over coded KV on Hopper's tensor cores: the launches. Host code; no state.
#include "hearth/kernels/attention/attention_bf16_start.cuh"
#include "hearth/kernels/attention/attention_coded_prefill_sm90.cuh"
#include "hearth/kernels/attention/attention_coded_sm90.h"

namespace hearth::sm90 {
namespace {

template <int kDim, class Tiles>
Status start(const StepBatch& batch, const CodedAttentionParams& p, ExecContext& exec) {
  HEARTH_TRY_ASSIGN(const int most_blocks, multiprocessors());
  return launch_with_shared(
      Launch(dim3(prefill_blocks(batch, p, most_blocks)), dim3(kCodedPrefillThreads), exec.stream),
      kPrefillSharedBytes<kDim, Tiles>, attention_coded_prefill_kernel<kDim, Tiles>, p);
}

template <class Tiles>
Status start(const AttentionArgs& args, const CodedAttentionParams& p, ExecContext& exec) {
  return args.kv.layout.head_dim == 128 ? start<128, Tiles>(*args.batch, p, exec)
                                        : start<64, Tiles>(*args.batch, p, exec);
}

}  // namespace

Status attention_coded_prefill_sm90(const AttentionArgs& args, const KvScales& scales, ExecContext& exec) {
  HEARTH_TRY_ASSIGN(const DeviceStep step, device_step("attention", *args.batch, exec));
  const CodedAttentionParams p{bf16_attention_params(args, step, exec), device_kv(args.kv, args.layer, scales)};
  switch (args.kv.layout.format) {
    case KvFormatId::kFp8: return start<Fp8Tiles>(args, p, exec);
    case KvFormatId::kInt4:
    case KvFormatId::kInt4Fireq: return start<Int4Tiles<false>>(args, p, exec);
    case KvFormatId::kInt4Saw: return start<Int4Tiles<true>>(args, p, exec);
    default: break;
  }
  HEARTH_CHECK(false, "KV format {}", static_cast<int>(args.kv.layout.format));
}

}  // namespace hearth::sm90
