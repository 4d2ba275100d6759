// SPDX-License-Identifier: Apache-2.0
// The Hopper attention kernels for KV in fp8.
#include "hearth/kernels/attention/attention_sm90_start.cuh"

namespace hearth {

template Status sm90::start_attention_format<sm90::Fp8Kv>(const AttentionArgs&, const KvScales&, AttentionRows,
                                                          ExecContext&);

}  // namespace hearth
