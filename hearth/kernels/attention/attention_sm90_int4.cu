// SPDX-License-Identifier: Apache-2.0
// The Hopper attention kernels for KV in int4, int4-fireq and int4-saw.
#include "hearth/kernels/attention/attention_sm90_start.cuh"

namespace hearth {

template Status sm90::start_attention_format<sm90::Int4Kv>(const AttentionArgs&, const KvScales&, AttentionRows,
                                                           ExecContext&);

}  // namespace hearth
