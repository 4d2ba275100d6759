// SPDX-License-Identifier: Apache-2.0
// attention on Hopper: validate and select; launches for KV in f32 and bf16 on CUDA cores. The coded formats' are
// compiled in attention_sm90_fp8.cu and attention_sm90_int4.cu, tensor-core kernels in attention_bf16_sm90.cu and
// attention_coded_sm90.cu.
#include "hearth/kernels/attention/attention_bf16_sm90.h"
#include "hearth/kernels/attention/attention_coded_sm90.h"
#include "hearth/kernels/attention/attention_sm90_start.cuh"

namespace hearth {

extern template Status sm90::start_attention_format<sm90::Fp8Kv>(const AttentionArgs&, const KvScales&,
                                                                 sm90::AttentionRows, ExecContext&);
extern template Status sm90::start_attention_format<sm90::Int4Kv>(const AttentionArgs&, const KvScales&,
                                                                  sm90::AttentionRows, ExecContext&);

Status attention_sm90(const AttentionArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate(args));
  if (args.q.rows() == 0) return {};
  if (sm90::takes_attention_bf16(args)) return attention_bf16_sm90(args, exec);
  const KvLayout& layout = args.kv.layout;
  if (layout.head_dim % 8 != 0 || layout.head_dim > sm90::kAttentionMaxHeadDim)
    return unsupported("attention: head dim is {}, the GPU's kernel has multiples of 8 up to {}", layout.head_dim,
                       sm90::kAttentionMaxHeadDim);
  HEARTH_TRY_ASSIGN(const KvScales scales,
                    check_kv_scales("attention", layout, {args.k_channel_scale, args.k_scale, args.v_scale}));
  using Rows = sm90::AttentionRows;
  Rows rows = Rows::kAll;
  if (sm90::takes_attention_coded(args)) {
    // Which kernels there is work for is the shape of the step, which a graph is captured for, and not the lengths.
    bool alone = false, prefills = false;
    for (int64_t s = 0; s < args.batch->num_sequences(); ++s) {
      alone |= args.batch->query_len(s) == 1;
      prefills |= args.batch->query_len(s) > 1;
    }
    if (prefills) {
      HEARTH_TRY(sm90::attention_coded_prefill_sm90(args, scales, exec));
      if (!alone) return {};
      rows = Rows::kAlone;
    }
  }
  switch (layout.format) {
    case KvFormatId::kF32: return sm90::start_attention_format<sm90::PlainKv<float>>(args, scales, rows, exec);
    case KvFormatId::kBf16: return sm90::start_attention_format<sm90::PlainKv<__nv_bfloat16>>(args, scales, rows, exec);
    case KvFormatId::kFp8: return sm90::start_attention_format<sm90::Fp8Kv>(args, scales, rows, exec);
    case KvFormatId::kInt4:
    case KvFormatId::kInt4Fireq:
    case KvFormatId::kInt4Saw: return sm90::start_attention_format<sm90::Int4Kv>(args, scales, rows, exec);
  }
  HEARTH_CHECK(false, "KV format {}", static_cast<int>(layout.format));
}

}  // namespace hearth
