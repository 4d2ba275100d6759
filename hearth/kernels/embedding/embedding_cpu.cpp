// SPDX-License-Identifier: Apache-2.0
// embedding with Highway: rows of the table, converted. Threads take whole tokens.
#include "hearth/kernels/embedding/embedding.h"

#include <cstring>
#include <type_traits>

#include "hearth/kernels/cpu/parallel.h"
#include "hearth/kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "hearth/kernels/embedding/embedding_cpu.cpp"
#include <hwy/foreach_target.h>  // NOLINT: compiles this file once per instruction set
#include <hwy/highway.h>

#include "hearth/kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace hearth::HWY_NAMESPACE {

template <class W, class T>
void embedding_rows(const EmbeddingArgs& args, int64_t begin, int64_t end) {
  const int64_t hidden = args.out.cols();
  for (int64_t t = begin; t < end; ++t) {
    const W* from = args.table.row<W>(args.sampled.id_of(args.tokens[t]));
    T* to = args.out.row<T>(t);
    if constexpr (std::is_same_v<W, T>) {
      std::memcpy(to, from, hidden * sizeof(T));
    } else {
      for_channels(hidden, [&](auto d, int64_t i) HWY_ATTR { store_f32(d, load_f32(d, from + i), to + i); });
    }
  }
}

template <class W>
void embedding_rows_of(const EmbeddingArgs& args, int64_t begin, int64_t end) {
  args.out.dtype == DType::kF32 ? embedding_rows<W, float>(args, begin, end)
                                : embedding_rows<W, bf16>(args, begin, end);
}

void embedding_range(const EmbeddingArgs& args, int64_t begin, int64_t end) {
  switch (args.table.dtype) {
    case DType::kF32: return embedding_rows_of<float>(args, begin, end);
    case DType::kF16: return embedding_rows_of<f16>(args, begin, end);
    default: return embedding_rows_of<bf16>(args, begin, end);
  }
}

}  // namespace hearth::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace hearth {

HWY_EXPORT(embedding_range);

Status embedding_cpu(const EmbeddingArgs& args, ExecContext& exec) {
  HEARTH_TRY(validate(args));
  if (args.out.cols() == 0) return {};
  cpu::parallel_items(exec, static_cast<int64_t>(args.tokens.size()), args.out.cols(), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(embedding_range)(args, begin, end);
  });
  return {};
}

}  // namespace hearth
#endif  // HWY_ONCE
