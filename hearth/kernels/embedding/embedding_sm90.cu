// SPDX-License-Identifier: Apache-2.0
// embedding on Hopper: a block per token copies its row, converting as it goes. Rows and types of any alignment.
#include "hearth/kernels/embedding/embedding.h"
#include "hearth/kernels/sm90/pdl.cuh"
#include "hearth/kernels/sm90/values.cuh"
#include "hearth/memory/cuda/launch.cuh"

namespace hearth {
namespace {

constexpr int kThreads = 128;

template <class W, class T>
struct EmbeddingParams {
  const int32_t* tokens;  // [blocks]
  SampledIds sampled;
  const W* table;
  T* out;
  int64_t table_stride, out_stride, hidden;
};

template <class W, class T>
__global__ void __launch_bounds__(kThreads) embedding_kernel(EmbeddingParams<W, T> p) {
  sm90::pdl_launch_next();
  sm90::pdl_wait();
  int64_t id = p.tokens[blockIdx.x];
  if (id < 0) id = max(0, p.sampled.first[(-1 - id) * p.sampled.stride]);  // SampledIds::id_of()
  const W* const from = p.table + id * p.table_stride;
  T* const to = p.out + blockIdx.x * p.out_stride;
  for (int64_t i = threadIdx.x; i < p.hidden; i += kThreads) to[i] = sm90::narrow<T>(sm90::widen(from[i]));
}

template <class W, class T>
Status start(const EmbeddingArgs& args, const int32_t* tokens, ExecContext& exec) {
  const EmbeddingParams<W, T> params{tokens,
                                     args.sampled,
                                     static_cast<const W*>(args.table.data),
                                     static_cast<T*>(args.out.data),
                                     args.table.row_stride,
                                     args.out.row_stride,
                                     args.out.cols()};
  Launch how(dim3(static_cast<unsigned>(args.tokens.size())), dim3(kThreads), exec.stream);
  how.pdl = true;
  return launch(how, embedding_kernel<W, T>, params);
}

template <class W>
Status start_to(const EmbeddingArgs& args, const int32_t* tokens, ExecContext& exec) {
  return args.out.dtype == DType::kF32 ? start<W, float>(args, tokens, exec)
                                       : start<W, __nv_bfloat16>(args, tokens, exec);
}

}  // namespace

Status embedding_sm90(const EmbeddingArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate(args));
  if (args.tokens.empty()) return {};
  HEARTH_TRY_ASSIGN(const int32_t* tokens, on_device("embedding", "tokens", args.tokens, exec));
  switch (args.table.dtype) {
    case DType::kF32: return start_to<float>(args, tokens, exec);
    case DType::kF16: return start_to<__half>(args, tokens, exec);
    default: return start_to<__nv_bfloat16>(args, tokens, exec);
  }
}

}  // namespace hearth
